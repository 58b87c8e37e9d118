"""The file formats that the fuzzing campaign attacks, up to where a model is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.campaigns.hostile import Format
from tests.campaigns.model_files import model_formats
from tests.campaigns.text_files import text_formats

# Inputs relative to the others', by what a read costs; a hundredfold lies between them.
SHARES = {
    "safetensors header": 2.0,
    "model.safetensors.index.json": 1.5,
    "config.json": 0.5,
    "quantize_config.json": 0.5,
    "head config": 0.25,  # of each of six
    "traffic": 2.0,
    "prompts": 2.0,
    "ShareGPT": 2.0,
    "evaluation.json": 0.3,
    "evaluation.json, shown": 0.01,
    "bench.json": 0.1,
    "vLLM metrics": 2.0,
    "vLLM stream": 2.0,
}
OTHERS = 0.7


def formats(root: Path) -> list[Format]:
    """All of them, their directories written below `root`."""
    found = [*model_formats(root), *text_formats(root)]
    return [replace(each, share=_share(each.name)) for each in found]


def _share(name: str) -> float:
    return SHARES.get(name, SHARES.get(name.partition(":")[0], OTHERS))
