"""The embedded pair: a small target and draft with held-out prompts, trained by `train.py`."""

from __future__ import annotations

import json
from pathlib import Path


def pair_dir() -> Path:
    """Return where `target/`, `draft/`, `prompts.jsonl` and `calibration.jsonl` lie."""
    return Path(__file__).parent


def embedded_prompts(limit: int) -> list[str]:
    """Return the first texts of the embedded prompts."""
    lines = (pair_dir() / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [str(json.loads(line)["prompt"]) for line in lines[:limit]]
