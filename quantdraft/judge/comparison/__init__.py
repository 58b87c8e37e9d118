"""Baseline against candidate, on the same prompts and in the same timing blocks, with intervals.

Prompts are resampled, not tokens, because tokens of one prompt are not independent; every resample
keeps both arms of a prompt together, and all arms of a timing block. Acceptance is a ratio of sums.
"""
