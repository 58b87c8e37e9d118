"""What a model directory is, quantized or not."""
