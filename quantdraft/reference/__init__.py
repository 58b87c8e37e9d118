"""The embedded pair: a small target and draft with held-out prompts, trained by `train.py`."""

from __future__ import annotations

from pathlib import Path


def pair_dir() -> Path:
    """Where `target/`, `draft/`, `prompts.jsonl` and `calibration.jsonl` lie."""
    return Path(__file__).parent
