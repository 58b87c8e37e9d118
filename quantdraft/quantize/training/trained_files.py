"""Write trained floats as a checkpoint of the source's own files, names and types."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.weights import INDEX_FILE
from quantdraft.common.files import write_json
from quantdraft.quantize.staging import copy_unchanged_files


def write_floats(source: Checkpoint, trained: Mapping[str, Tensor], output: Path) -> Checkpoint:
    """Write the source into a directory that exists, with the trained tensors in place of its own.

    One file of weights is in memory at a time.
    """
    from safetensors.torch import save_file

    from quantdraft.checkpoints.tensors.unpacking import read_tensor

    by_file: dict[str, list[str]] = {}
    for name, info in source.tensors.items():
        by_file.setdefault(info.file, []).append(name)
    for file, names in by_file.items():
        tensors = {
            name: trained[name] if name in trained else read_tensor(source, name) for name in names
        }
        plain = {name: each.contiguous() for name, each in tensors.items()}
        save_file(plain, output / file, metadata={"format": "pt"})
    if (source.path / INDEX_FILE).is_file():
        weight_map = {name: info.file for name, info in source.tensors.items()}
        write_json(output / INDEX_FILE, {"metadata": {}, "weight_map": weight_map})
    shutil.copyfile(source.path / "config.json", output / "config.json")
    copy_unchanged_files(source, output)
    return open_checkpoint(output)
