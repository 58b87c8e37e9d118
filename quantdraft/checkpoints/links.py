"""Links in a model's directory: which are followed when its files are copied, sent or served.

A link named tokenizer.json or model.safetensors could lead to a private key, which would be copied
and published. Followed are the links of the Hub's cache into its own `blobs`, and those from a
listed shard to a safetensors file elsewhere, as on another disk; such a shard is copied, and no
hard link is made through a link.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from quantdraft.checkpoints.weights import copy_without, read_header, weight_files
from quantdraft.errors import CheckpointError


def require_own_files(directory: Path) -> None:
    """Raise CheckpointError for a link that leads out of a directory whose files are copied."""
    leading_out = [path for path in sorted(directory.iterdir()) if _leads_out(path, directory)]
    shards = weight_files(directory) if leading_out and _is_model(directory) else []
    for path in leading_out:
        if path.name in shards:
            read_header(path)  # raises for what is no safetensors file
            continue
        raise CheckpointError(
            f"'{path}' is a link to '{path.resolve()}', outside the model's directory: it is not "
            "copied. Put the file itself there, or remove the link."
        )


def shards_elsewhere(directory: Path) -> list[Path]:
    """Return the links to shards outside of the directory, which are copied from there."""
    shards = (directory / name for name in weight_files(directory))
    return [path for path in shards if _leads_out(path, directory)]


def place_weights(source: Path, output: Path, without: Collection[str] = ()) -> None:
    """Put a weight file at `output`: linked where possible, as it is large and never edited.

    without: names of tensors to leave out; the file is then written anew
    """
    if without:
        copy_without(source, output, without)
        return
    try:
        if source.is_symlink():
            raise OSError("no hard link is made through a link")
        os.link(source, output, follow_symlinks=False)
    except OSError:  # also: another file system, or one without links
        shutil.copyfile(source, output)


def _is_model(directory: Path) -> bool:
    return (directory / "config.json").is_file() and any(directory.glob("*.safetensors"))


def _leads_out(path: Path, directory: Path) -> bool:
    if not path.is_symlink():
        return False
    own = directory.resolve()
    inside = [own, *([own.parent.parent / "blobs"] if own.parent.name == "snapshots" else [])]
    led_to = path.resolve()
    return not any(led_to.is_relative_to(each) for each in inside)
