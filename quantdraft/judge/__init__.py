"""Measurements become figures, a verdict and advice. No torch, no I/O."""
