"""The files of a model's directory that are served: weights, and what engines read beside them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from quantdraft.checkpoints.checkpoint import OLD_CONFIG_FILE, Checkpoint
from quantdraft.checkpoints.weights import SINGLE_FILE, weight_files
from quantdraft.common.files import write_json

# Pickles and leftovers of training stay behind.
SUFFIXES = {".safetensors", ".json", ".model", ".txt", ".jinja"}
NAMES = {"LICENSE", "NOTICE", "mask_embedding"}  # the last: of some DFlash heads, for vLLM


def copy_served(checkpoint: Checkpoint, staging: Path) -> None:
    """Copy what an engine may read. Weights are linked where possible: large, and never edited.

    A directory of auto-gptq comes out as engines expect it today: the weights under their usual
    name, the quantization in config.json.
    """
    source = checkpoint.path
    weights = weight_files(source)
    for path in sorted(source.iterdir()):
        if not path.is_file():
            continue
        if path.suffix == ".safetensors":
            name = SINGLE_FILE if weights == [path.name] else path.name
            _link_or_copy(path.resolve(), staging / name)
        elif path.suffix in SUFFIXES or path.name.split(".")[0] in NAMES:
            shutil.copyfile(path, staging / path.name)
    if (source / OLD_CONFIG_FILE).is_file():
        write_json(staging / "config.json", checkpoint.config)


def _link_or_copy(source: Path, copy: Path) -> None:
    try:
        os.link(source, copy)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, copy)
