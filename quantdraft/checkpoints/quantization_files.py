"""The quantization section where it stands in a file of its own, beside config.json.

auto-gptq's says bits and group size, AutoAWQ's too, ModelOpt's an algorithm. Newer writers put the
section into config.json as well. vLLM then reads that one, the writers' own tools the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantdraft.common.documents import read_json_object
from quantdraft.errors import CheckpointError

# The file, and the quant_method of what it says; the first one that says something counts.
OWN_FILES = {
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
}
# What both may say, each by its names.
SAID_TWICE = (
    ("quant_algo",),
    ("kv_cache_quant_algo",),
    ("bits", "w_bit"),
    ("group_size", "q_group_size"),
    ("sym",),
    ("desc_act",),
    ("checkpoint_format",),
    ("zero_point",),
    ("version",),
)


def quantization_beside(path: Path) -> dict[str, Any]:
    """Return the quantization section that stands in a file of its own, or nothing."""
    name = _own_file(path)
    if name is None:
        return {}
    return {"quant_method": OWN_FILES[name], **read_json_object(path / name)}


def require_one_quantization(path: Path, own: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
    """Raise CheckpointError, with both values, where config.json and the file beside it differ."""
    for names in SAID_TWICE:
        said = _said(own, names), _said(beside, names)
        if None not in said and str(said[0]).lower() != str(said[1]).lower():
            raise CheckpointError(
                f"'{path}' contradicts itself: {names[0]} is {said[0]!r} in config.json and "
                f"{said[1]!r} in {_own_file(path)}, and readers differ in which they take. Keep "
                "the one that was written with the weights."
            )


def _said(quantization: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    nested = quantization.get("quantization")
    settings = {**quantization, **(nested if isinstance(nested, dict) else {})}
    return next((settings[name] for name in names if settings.get(name) is not None), None)


def _own_file(path: Path) -> str | None:
    for name in OWN_FILES:
        if (path / name).is_file():
            found = read_json_object(path / name)
            if isinstance(found.get("quantization"), dict) or found.keys() & {"bits", "w_bit"}:
                return name
    return None
