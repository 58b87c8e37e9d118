"""Quantize a checkpoint by a recipe, and prove the result."""
