"""A recipe and a checkpoint make a quantized checkpoint, with its proof."""
