"""A draft's vocabulary, padded to its target's: rows of zeros under embedding table and head.

Rows are the outermost dimension, so a padded tensor is the old one's bytes with zeros behind them,
whatever its type: no tensor is read as numbers. A zero integer under a zero scale is a weight of
zero in every format that is padded here. Left out: formats that do not store a row after a row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from quantdraft.checkpoints.checkpoint import MANIFEST_FILE, Checkpoint
from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.stored_formats import HEAD, stored_format
from quantdraft.checkpoints.weights import INDEX_FILE, TensorInfo
from quantdraft.common.documents import read_json_object
from quantdraft.common.files import file_sha256, write_json
from quantdraft.engines.findings import vocab_size
from quantdraft.errors import CheckpointError

CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Padding:
    """Which tensors get how many rows. `rows` is by full tensor name."""

    before: int
    after: int
    rows: dict[str, int]

    @property
    def sentence(self) -> str:
        """What was done, for the user and the model card."""
        return (
            f"The vocabulary was padded from {self.before} to {self.after} rows of zeros "
            f"({', '.join(self.rows)}). The added ids mean no token; their logit is 0, whatever "
            "the text. The evaluation, if there is one, is of the draft before padding."
        )


def plan_padding(checkpoint: Checkpoint, vocabulary: int) -> Padding | None:
    """Return what it takes to give the draft `vocabulary` rows; None where it has them already.

    Raises CheckpointError for a draft that has more, or whose head is stored in a layout that
    cannot be padded.
    """
    before = vocab_size(checkpoint.config)
    if before is None:
        raise CheckpointError(f"'{checkpoint.path}' has no vocab_size in its config.json.")
    if before == vocabulary:
        return None
    if before > vocabulary:
        raise CheckpointError(
            f"the draft has {before} rows and the target {vocabulary}: a draft is not cut, for it "
            "may propose any of its tokens. Pad the target's embedding and head instead."
        )
    embedding = checkpoint.embedding_name
    rows = {embedding: vocabulary} | _head_rows(checkpoint, before, vocabulary)
    _require_rows(checkpoint, embedding, before)
    return Padding(before, vocabulary, rows)


def _head_rows(checkpoint: Checkpoint, before: int, after: int) -> dict[str, int]:
    """Return the head's own tensors, each with its number of rows; empty for a tied head."""
    own = [name for name in checkpoint.tensors if name.startswith(f"{HEAD}.")]
    fmt = stored_format(checkpoint.quantization or {}, HEAD) if own else None
    is_dense = {name.removeprefix(f"{HEAD}.") for name in own} <= {"weight", "bias"}
    if fmt is None or (is_dense and checkpoint.tensors[own[0]].dtype in {"F16", "BF16", "F32"}):
        if not is_dense:
            raise CheckpointError(
                f"the head of '{checkpoint.path}' is stored as {', '.join(sorted(own))}, which "
                "--pad-vocab does not read. Use a recipe that keeps the head, or pads before it."
            )
        return dict.fromkeys(own, after)
    return _quantized_rows(checkpoint, fmt, own, before, after)


def _quantized_rows(
    checkpoint: Checkpoint, fmt: WeightFormat, own: list[str], before: int, after: int
) -> dict[str, int]:
    if fmt.library != "compressed-tensors":
        raise CheckpointError(
            f"the head of '{checkpoint.path}' is quantized by {fmt.library}, which does not store "
            "one row after the other: it cannot be padded. Pad the full-precision draft and "
            "quantize that, or use a recipe that keeps the head."
        )
    plain = TensorInfo("BF16", (before, 1), "")
    small, large = (fmt.stored(HEAD, replace(plain, shape=(n, 1))) for n in (before, after))
    rows = {}
    for name in own:
        if name in small and small[name].shape[:1] != large[name].shape[:1]:
            rows[name] = large[name].shape[0]
        elif name.endswith((".weight_shape", ".bias")):
            rows[name] = after
    return rows


def _require_rows(checkpoint: Checkpoint, embedding: str, before: int) -> None:
    found = checkpoint.tensors[embedding].shape[0]
    if found != before:
        raise CheckpointError(
            f"'{checkpoint.path}': {embedding!r} has {found} rows, and config.json says {before}."
        )


def pad(checkpoint: Checkpoint, padding: Padding, staging: Path) -> None:
    """Write the padded weights, config and manifest into `staging`, over what lies there."""
    files = {checkpoint.tensors[name].file for name in padding.rows}
    for file in sorted(files):
        _pad_file(checkpoint.path / file, staging / file, padding, checkpoint.copies)
    config = staging / "config.json"
    write_json(config, padded_config(read_json_object(config), padding.after))
    _pad_index(checkpoint, staging, padding)
    _pad_manifest(staging, files, padding)


def _pad_file(source: Path, target: Path, padding: Padding, left_out: tuple[str, ...]) -> None:
    """Copy a safetensors file with the padded tensors' bytes followed by zeros.

    left_out: tensors that are not copied: the embedding, stored a second time
    """
    with source.open("rb") as old:
        length = int.from_bytes(old.read(8), "little")
        stored = json.loads(old.read(length))
        header = {name: entry for name, entry in stored.items() if name not in left_out}
        start = 8 + length
        new_header = _shift_offsets(header, padding)
        text = json.dumps(new_header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format aligns the data
        target.unlink(missing_ok=True)  # a link would be written through
        with target.open("wb") as new:
            new.write(len(text).to_bytes(8, "little") + text)
            for name, entry in _in_order(header):
                begin, end = entry["data_offsets"]
                old.seek(start + begin)
                if name.endswith(".weight_shape") and name in padding.rows:
                    columns = old.read(end - begin)[8:]
                    new.write(padding.rows[name].to_bytes(8, "little") + columns)
                    continue
                _copy_bytes(old, new, end - begin)
                first, last = new_header[name]["data_offsets"]
                _write_zeros(new, (last - first) - (end - begin))


def _in_order(header: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    yield from sorted(entries, key=lambda pair: pair[1]["data_offsets"][0])


def _shift_offsets(header: dict[str, Any], padding: Padding) -> dict[str, Any]:
    """Return the header after padding: longer tensors, and what follows them moved."""
    moved = {"__metadata__": header["__metadata__"]} if "__metadata__" in header else {}
    at = 0
    for name, entry in _in_order(header):
        begin, end = entry["data_offsets"]
        shape, size = list(entry["shape"]), end - begin
        if name in padding.rows and not name.endswith(".weight_shape"):
            row_bytes = size // shape[0]
            shape[0] = padding.rows[name]
            size = row_bytes * shape[0]
        moved[name] = {**entry, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return moved


def _copy_bytes(old: BinaryIO, new: BinaryIO, size: int) -> None:
    while size:
        chunk = old.read(min(size, CHUNK_BYTES))
        new.write(chunk)
        size -= len(chunk)


def _write_zeros(new: BinaryIO, size: int) -> None:
    while size:
        chunk = min(size, CHUNK_BYTES)
        new.write(bytes(chunk))
        size -= chunk


def padded_config(config: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return a config whose vocabulary has so many rows, wherever it states the size."""
    padded = {**config, "vocab_size": rows} if "vocab_size" in config else config
    text = config.get("text_config") or {}
    if "vocab_size" in text:
        padded = {**padded, "text_config": {**text, "vocab_size": rows}}
    return padded


def _pad_index(checkpoint: Checkpoint, staging: Path, padding: Padding) -> None:
    path = staging / INDEX_FILE
    if not path.is_file():
        return
    index = json.loads(path.read_text(encoding="utf-8"))
    total = (index.get("metadata") or {}).get("total_size")
    if total is not None:
        added = (_added_bytes(checkpoint.tensors[name], n) for name, n in padding.rows.items())
        index["metadata"]["total_size"] = total + sum(added)
        write_json(path, index)


def _added_bytes(tensor: TensorInfo, rows: int) -> int:
    if len(tensor.shape) == 1 and tensor.dtype == "I64":  # weight_shape: a number is changed
        return 0
    return (rows - tensor.shape[0]) * (tensor.num_bytes // math.prod(tensor.shape[:1]))


def _pad_manifest(staging: Path, files: set[str], padding: Padding) -> None:
    """Write the new hashes and the padding into the manifest."""
    path = staging / MANIFEST_FILE
    if not path.is_file():
        return
    manifest = json.loads(path.read_text(encoding="utf-8"))
    hashes = manifest.get("sha256") or {}
    changed = {name for name in {"config.json", INDEX_FILE, *files} if name in hashes}
    manifest["sha256"] = hashes | {name: file_sha256(staging / name) for name in sorted(changed)}
    manifest["padding"] = {"from": padding.before, "to": padding.after}
    write_json(path, manifest)
