"""quantdraft: quantize the draft of speculative decoding, and know whether it pays."""

__version__ = "0.1.0"
