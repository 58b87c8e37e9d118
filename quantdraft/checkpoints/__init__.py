"""Model directories: config, tensors, formats, vocabulary, quantized or not."""
