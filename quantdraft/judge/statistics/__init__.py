"""Intervals and what would settle a doubt: bootstrap, studentized bootstrap."""
