"""Read a model without its weights: from a directory, a config.json, or a known shape's name.

Where a directory has weights their headers are read; else the tensors follow from the config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.configs import require_config
from quantdraft.checkpoints.heads.opening import open_head
from quantdraft.checkpoints.shapes import config_tensors, shape_checkpoint, shape_names
from quantdraft.checkpoints.stored_formats import linear_modules, stored_format
from quantdraft.common.documents import read_json_object
from quantdraft.errors import CheckpointError, OptionError, nearest, nearest_path

CONFIG = "config.json"


def read_model(given: str, option: str) -> Checkpoint:
    """Read the model from its headers or its config; its weights are never read.

    Raises OptionError for a name that is nothing, CheckpointError for a config that does not say
    which tensors there are, and for files that are not the ones its architecture needs.
    """
    path = Path(given)
    if given in shape_names() and not path.exists():
        return shape_checkpoint(given)
    if path.is_dir() and any(path.glob("*.safetensors")):
        checkpoint = open_checkpoint(path)
        _require_complete(checkpoint)
        return checkpoint
    file = path / CONFIG if path.is_dir() else path
    if not file.is_file():
        raise OptionError(
            f"{option} {given!r} is no directory with a {CONFIG}, no such file, and no known shape."
            f"{nearest(given, shape_names()) or nearest_path(path)} "
            f"Shapes: {', '.join(shape_names())}."
        )
    config = read_json_object(file)
    require_config(config, file)
    return _from_config(file, config)


def _require_complete(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for tensors that are missing, left over or without their scales.

    Of an architecture that transformers does not know nothing is said: bytes are enough here.
    """
    from quantdraft.checkpoints.tensors.inventory import require_complete
    from quantdraft.checkpoints.tensors.loading import load_config

    if open_head(checkpoint) is not None:
        return
    try:
        config = load_config(checkpoint.path)
    except CheckpointError:
        return
    require_complete(checkpoint, config)


def _from_config(file: Path, config: dict[str, Any]) -> Checkpoint:
    bare = Checkpoint(file.parent, config, {})
    tensors = config_tensors(bare.text_config, str(file))
    if bare.quantization is None:
        return Checkpoint(file.parent, config, tensors)
    formats = {m: stored_format(bare.quantization, m) for m in linear_modules(tensors)}
    if not any(formats.values()):
        method = bare.quantization.get("quant_method")
        raise CheckpointError(
            f"'{file}' is quantized by {method!r}, whose sizes do not follow from a config here. "
            "Give a directory with its safetensors: their headers are enough."
        )
    for module, fmt in formats.items():
        if fmt is not None:
            tensors |= fmt.stored(module, tensors.pop(f"{module}.weight"))
    return Checkpoint(file.parent, config, tensors)


def require_full_precision(draft: Checkpoint, given: str) -> None:
    """Raise CheckpointError for a draft that is quantized: recipes start from the original."""
    if draft.quantization is not None:
        raise CheckpointError(
            f"--draft-config {given!r} is quantized already: recipes start from full precision. "
            "Give the config of the draft it was made from."
        )
