"""The files of a model's directory that are served: weights, and what engines read beside them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import MANIFEST_FILE, Checkpoint
from quantdraft.checkpoints.links import place_weights
from quantdraft.checkpoints.rotary import spell_rotary_both_ways
from quantdraft.checkpoints.weights import INDEX_FILE, SINGLE_FILE, read_header, weight_files
from quantdraft.common.documents import read_json_object
from quantdraft.common.files import file_sha256, write_json

# Pickles and leftovers of training stay behind.
SUFFIXES = {".json", ".model", ".txt", ".jinja"}
NAMES = {"LICENSE", "NOTICE", "mask_embedding"}  # the last: of some DFlash heads, for vLLM


def copy_served(checkpoint: Checkpoint, staging: Path) -> None:
    """Copy what an engine may read: the weights that are listed, and what stands beside them.

    A directory of auto-gptq comes out as engines expect it today: the weights under their usual
    name, the quantization in config.json. The config has its rotary settings under the names that
    old and new readers look for, and a stored copy of the embedding is left out.
    """
    source = checkpoint.path
    for path in sorted(source.iterdir()):
        if path.is_file() and _is_served(path):
            shutil.copyfile(path, staging / path.name)
    weights = weight_files(source)
    for file in weights:
        left_out = set(read_header(source / file)) & set(checkpoint.copies)
        place_weights(source / file, staging / _usual_name(file, weights), left_out)
    _replace_json(staging / "config.json", spell_rotary_both_ways(checkpoint.config))
    if (source / INDEX_FILE).is_file():
        index = read_json_object(source / INDEX_FILE)
        kept = {n: f for n, f in index["weight_map"].items() if n not in checkpoint.copies}
        _replace_json(staging / INDEX_FILE, index | {"weight_map": kept})
    _correct_hashes(staging)


def _usual_name(file: str, weights: list[str]) -> str:
    return SINGLE_FILE if weights == [file] and file.startswith("gptq_model") else file


def _replace_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file unless it says that already: an unchanged one keeps its hash."""
    if not path.is_file() or read_json_object(path) != content:
        write_json(path, content)


def _correct_hashes(staging: Path) -> None:
    """Give the manifest the hashes of the config and index that were written anew."""
    path = staging / MANIFEST_FILE
    if not path.is_file():
        return
    manifest = read_json_object(path)
    hashes = manifest.get("sha256") or {}
    found = {n: file_sha256(staging / n) for n in ("config.json", INDEX_FILE) if n in hashes}
    if hashes | found != hashes:
        write_json(path, manifest | {"sha256": hashes | found})


def _is_served(path: Path) -> bool:
    """Return True for a file that engines read beside config and weights."""
    if path.suffix == ".safetensors" or path.name.endswith(".index.json"):
        return False
    return path.suffix in SUFFIXES or path.name.split(".")[0] in NAMES
