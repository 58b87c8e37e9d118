"""Stage the files that a backend sees, and copy those that stay unchanged."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.rotary import (
    BASE,
    LOCAL_BASE,
    NEW,
    OLD,
    SECTIONS,
    spell_rotary_both_ways,
)
from quantdraft.checkpoints.stored_formats import HEAD
from quantdraft.checkpoints.weights import INDEX_FILE, copy_without, read_header
from quantdraft.common.documents import read_json_object
from quantdraft.common.files import hidden_directory, write_json
from quantdraft.quantize.recipe import Recipe

# What belongs to a model besides config and weights, and is copied as it is.
CARRIED = (
    "tokenizer*", "*.model", "vocab.*", "merges.txt", "special_tokens_map.json", "spiece.*",
    "added_tokens.json", "generation_config.json", "chat_template*", "*.jinja", "tekken.json",
    "LICENSE*", "NOTICE*",
    "mask_embedding.pt",  # of some DFlash heads: vLLM reads it beside the weights; it is not opened
)  # fmt: skip


@contextmanager
def stage_source(recipe: Recipe, source: Checkpoint, output: Path) -> Iterator[Checkpoint]:
    """Yield a checkpoint of links to the model's own files; removed when the block ends.

    A draft's directory may hold more than the model (other formats, pickles); the backend must not
    see, copy or load it. A tied head that is to be quantized gets its own tensor.
    """
    staging = hidden_directory(output, "source")
    try:
        files = sorted({info.file for info in source.tensors.values()})
        if source.has_tied_head and recipe.lm_head != "keep":
            _untie_head(source, staging, files)
        else:
            (staging / "config.json").symlink_to((source.path / "config.json").resolve())
            for file in files:
                _stage_weights(source, file, staging / file)
            if (source.path / INDEX_FILE).is_file():
                weight_map = {name: info.file for name, info in source.tensors.items()}
                write_json(staging / INDEX_FILE, {"metadata": {}, "weight_map": weight_map})
        for path in _files_to_copy(source.path):  # GPTQ asks for a tokenizer
            (staging / path.name).symlink_to(path.resolve())
        yield open_checkpoint(staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def copy_unchanged_files(source: Checkpoint, output: Path) -> None:
    """Copy tokenizer, chat template, generation settings and licence."""
    for path in _files_to_copy(source.path):
        shutil.copyfile(path, output / path.name)
    for path in output.iterdir():  # some writers make files that only their owner can read
        path.chmod(0o644)


def complete_config(source: Checkpoint, output: Path) -> None:
    """Put back the fields of config.json that a library dropped, as it does names of old readers.

    Its own fields stay. The rotary settings are written under the old and the new names.
    """
    path = output / "config.json"
    written = read_json_object(path)
    config = _with_dropped(source.config, written)
    for name in SECTIONS:
        if isinstance(written.get(name), dict) and isinstance(source.config.get(name), dict):
            config[name] = _with_dropped(source.config[name], written[name])
    write_json(path, spell_rotary_both_ways(config))


def _with_dropped(section: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    renamed = {BASE, LOCAL_BASE, OLD} if written.get(NEW) else set()
    return {k: v for k, v in section.items() if k not in renamed} | written


def _files_to_copy(directory: Path) -> list[Path]:
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return [p for p in files if any(fnmatch.fnmatch(p.name, pattern) for pattern in CARRIED)]


def _stage_weights(source: Checkpoint, file: str, place: Path) -> None:
    """Link one file of weights; written anew where it holds a copy of the embedding as the head."""
    path = source.path / file
    copies = set(source.copies) & set(read_header(path)) if source.copies else set()
    if copies:
        copy_without(path, place, copies)
    else:
        place.symlink_to(path.resolve())


def _untie_head(source: Checkpoint, staging: Path, files: list[str]) -> None:
    """Stage the draft with its embedding table stored a second time, as lm_head.weight."""
    from safetensors.torch import save_file

    from quantdraft.checkpoints.tensors.unpacking import read_tensor

    total = len(files) + 1
    renamed = {f: f"model-{i:05d}-of-{total:05d}.safetensors" for i, f in enumerate(files, 1)}
    for file, link in renamed.items():
        _stage_weights(source, file, staging / link)
    head_file = f"model-{total:05d}-of-{total:05d}.safetensors"
    head = read_tensor(source, source.embedding_name)
    save_file({f"{HEAD}.weight": head}, staging / head_file, metadata={"format": "pt"})
    weight_map = {name: renamed[info.file] for name, info in source.tensors.items()}
    index = {"metadata": {}, "weight_map": weight_map | {f"{HEAD}.weight": head_file}}
    write_json(staging / INDEX_FILE, index)
    config = source.config | {"tie_word_embeddings": False}
    if "text_config" in config:
        config["text_config"] = config["text_config"] | {"tie_word_embeddings": False}
    write_json(staging / "config.json", config)
