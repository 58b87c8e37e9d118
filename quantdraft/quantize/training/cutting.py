"""Cut a small draft out of a target: some of its layers, with its embedding, norm and head.

It shares the target's tokenizer, and is trained from there; untrained it proposes little of use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.weights import INDEX_FILE
from quantdraft.common.files import write_json
from quantdraft.errors import CheckpointError, OptionError
from quantdraft.quantize.staging import copy_unchanged_files

_LAYER = re.compile(r"(.*?\b(?:layers|h|blocks)\.)(\d+)(\..+)")
# Fields that tell of layers beyond the model's own, which a cut draft has not.
DROPPED = ("num_nextn_predict_layers", "mtp_num_hidden_layers")


def spread_layers(number: int, num_layers: int) -> tuple[int, ...]:
    """Return so many of a model's layers, evenly spread, the first and the last among them."""
    if not 1 <= number <= num_layers:
        raise OptionError(f"--layers {number} must lie between 1 and the target's {num_layers}.")
    if number == 1:
        return (0,)
    return tuple(round(at * (num_layers - 1) / (number - 1)) for at in range(number))


def num_layers_of(target: Checkpoint) -> int:
    """Return how many decoder layers a model has."""
    return int(target.text_config.get("num_hidden_layers") or target.text_config.get("n_layer", 0))


def cut_layers(target: Checkpoint, layers: Sequence[int], output: Path) -> Checkpoint:
    """Write a draft of the target's layers, in this order, into a directory that exists.

    Raises OptionError for a layer that the target lacks, and CheckpointError for a target whose
    layers cannot be told by the names of its tensors, or that is quantized.
    """
    from safetensors.torch import save_file

    from quantdraft.checkpoints.tensors.unpacking import read_tensor

    number = num_layers_of(target)
    for layer in layers:
        if not 0 <= layer < number:
            raise OptionError(f"the target has no layer {layer}: they are 0 to {number - 1}.")
    if target.quantization is not None:
        raise CheckpointError(f"'{target.path}' is quantized. Cut a full-precision target.")
    names = _new_names(target, layers)
    files: dict[str, dict[str, str]] = {}
    for new, old in names.items():
        files.setdefault(target.tensors[old].file, {})[new] = old
    for file, own in files.items():
        tensors = {new: read_tensor(target, old) for new, old in own.items()}
        save_file(tensors, output / file, metadata={"format": "pt"})
    if (target.path / INDEX_FILE).is_file():
        weight_map = {new: file for file, own in files.items() for new in own}
        write_json(output / INDEX_FILE, {"metadata": {}, "weight_map": weight_map})
    write_json(output / "config.json", _cut_config(target.config, layers, number))
    copy_unchanged_files(target, output)
    return open_checkpoint(output)


def _new_names(target: Checkpoint, layers: Sequence[int]) -> dict[str, str]:
    """Return the names of the cut draft's tensors, with the target's name of each."""
    found: dict[str, str] = {}
    has_layers = False
    for name in target.tensors:
        match = _LAYER.fullmatch(name)
        if match is None:
            found[name] = name
            continue
        has_layers = True
        before, layer, after = match.groups()
        for place, wanted in enumerate(layers):
            if wanted == int(layer):
                found[f"{before}{place}{after}"] = name
    if not has_layers:
        raise CheckpointError(f"the layers of '{target.path}' cannot be told by their names.")
    return found


def _cut_config(config: Mapping[str, Any], layers: Sequence[int], number: int) -> dict[str, Any]:
    """Return the config of the cut draft: fields that have a value for each layer are cut too."""
    cut: dict[str, Any] = {}
    for key, value in config.items():
        if key in DROPPED:
            continue
        if key in {"num_hidden_layers", "n_layer"}:
            cut[key] = len(layers)
        elif key == "text_config":
            cut[key] = _cut_config(value, layers, number)
        elif isinstance(value, list) and len(value) == number and key != "architectures":
            cut[key] = [value[layer] for layer in layers]
        else:
            cut[key] = value
    if isinstance(cut.get("max_window_layers"), int):
        cut["max_window_layers"] = min(cut["max_window_layers"], len(layers))
    return cut
