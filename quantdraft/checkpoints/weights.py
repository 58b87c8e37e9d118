"""Read what a safetensors checkpoint holds from its headers alone: no torch, no tensor data.

Layout of a file (https://huggingface.co/docs/safetensors): 8 bytes with the header's length, the
header as JSON, then the tensors' bytes at the offsets that the header gives.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from quantdraft.common.documents import parse_json, read_json_object
from quantdraft.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
AUTO_GPTQ_FILES = "gptq_model*.safetensors"  # as auto-gptq named a model's one file
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
CHUNK_BYTES = 1 << 24
MAX_COUNT, MAX_DIMENSIONS = 1 << 62, 64
ELEMENT_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
MAX_NAME_BYTES = 255  # of a file's name, on any file system
# Float types by torch's name.
FLOAT_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
FLOAT_DTYPES = frozenset(FLOAT_NAMES)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint, as its header describes it."""

    dtype: str  # as safetensors spells it: BF16, I32, F8_E4M3, …
    shape: tuple[int, ...]
    file: str  # name of the file that holds it
    offset: int = field(default=0, compare=False)  # of its first byte in that file

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor's data on disk."""
        return math.prod(self.shape) * ELEMENT_BYTES[self.dtype]


def read_tensors(directory: Path) -> dict[str, TensorInfo]:
    """Read the headers of a single or sharded checkpoint: every tensor, by name.

    Raises CheckpointError for a missing shard, a truncated file, a header that contradicts it, a
    tensor that is stored twice, and one that the index does not list.
    """
    tensors: dict[str, TensorInfo] = {}
    for name in weight_files(directory):
        found = read_header(directory / name)
        for twice in sorted(tensors.keys() & found.keys()):
            raise CheckpointError(
                f"'{directory}' holds {twice!r} twice, in '{tensors[twice].file}' and in '{name}': "
                "which one counts is not defined. Download or copy the checkpoint again."
            )
        tensors |= found
    index = directory / INDEX_FILE
    if index.is_file():
        _require_indexed(index, tensors)
    return tensors


def weight_files(directory: Path) -> list[str]:
    """Return the names of the files that hold the weights, sorted; each of them exists.

    All that reads, hashes, copies or serves weights goes by this list. Raises CheckpointError where
    transformers and engines would not read the same files.
    """
    index = directory / INDEX_FILE
    if not index.is_file():
        return [_require_single(directory)]
    names = sorted(set(_weight_map(index).values()))
    if names != [SINGLE_FILE] and (directory / SINGLE_FILE).is_file():
        raise CheckpointError(
            f"'{directory}' holds both {SINGLE_FILE} and {INDEX_FILE}, which names other files "
            f"('{next(name for name in names if name != SINGLE_FILE)}'): transformers reads the "
            "first, vLLM what the second names. Remove the one that is out of date."
        )
    for name in names:
        if len(name.encode()) > MAX_NAME_BYTES or not (directory / name).is_file():
            raise CheckpointError(
                f"'{directory}' lacks the shard '{name}' that {INDEX_FILE} names. "
                "Download or copy it again."
            )
    return names


def stray_weights(directory: Path) -> list[str]:
    """Return the names of other safetensors beside the weights: never read, copied or exported."""
    listed = set(weight_files(directory))
    return sorted(p.name for p in directory.glob("*.safetensors") if p.name not in listed)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read the tensors of one file, and check that it is as long as its header says.

    Every byte of the data must belong to exactly one tensor, as the format requires.
    """
    found = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if found < 8 or header_bytes > min(found - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"'{path}'{_led_to(path)} is truncated or not safetensors: it has {found} bytes, "
                f"its header alone claims {header_bytes}. Download or copy it again."
            )
        header = _parse_header(path, file.read(header_bytes))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"'{path}': '__metadata__' is not an object of texts.")
    start = 8 + header_bytes
    tensors = {name: _parse_entry(path, name, entry, start) for name, entry in header.items()}
    _require_side_by_side(path, header)
    expected = start + sum(info.num_bytes for info in tensors.values())
    if found != expected:
        word = "truncated" if found < expected else "longer than its header says"
        raise CheckpointError(
            f"'{path}' is {word}: expected {expected} bytes, found {found}. "
            "Download or copy it again."
        )
    return tensors


def _led_to(path: Path) -> str:
    return f", a link to '{path.resolve()}'," if path.is_symlink() else ""


def copy_without(source: Path, output: Path, names: Collection[str]) -> None:
    """Copy a safetensors file without some of its tensors."""
    tensors = [(n, info) for n, info in read_header(source).items() if n not in names]
    tensors.sort(key=lambda pair: pair[1].offset)
    with source.open("rb") as old, output.open("wb") as new:
        header, at = json.loads(old.read(int.from_bytes(old.read(8), "little"))), 0
        kept = {key: header[key] for key in ("__metadata__",) if key in header}
        for name, info in tensors:
            kept[name] = {**header[name], "data_offsets": [at, at + info.num_bytes]}
            at += info.num_bytes
        text = json.dumps(kept, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format aligns the data
        new.write(len(text).to_bytes(8, "little") + text)
        for _, info in tensors:
            new.writelines(_pieces(old, info))


def is_same_data(directory: Path, one: TensorInfo, other: TensorInfo) -> bool:
    """Return True where two stored tensors have one type and shape, and the same bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with (directory / one.file).open("rb") as first, (directory / other.file).open("rb") as second:
        pairs = zip(_pieces(first, one), _pieces(second, other), strict=True)
        return all(a == b for a, b in pairs)


def _pieces(file: BinaryIO, info: TensorInfo) -> Iterator[bytes]:
    """Yield a tensor's bytes, at most `CHUNK_BYTES` at a time."""
    for begin in range(0, info.num_bytes, CHUNK_BYTES):
        file.seek(info.offset + begin)
        yield file.read(min(CHUNK_BYTES, info.num_bytes - begin))


def _require_single(directory: Path) -> str:
    if (directory / SINGLE_FILE).is_file():
        return SINGLE_FILE
    of_auto_gptq = sorted(directory.glob(AUTO_GPTQ_FILES))
    if len(of_auto_gptq) == 1:
        return of_auto_gptq[0].name
    pickles = [p.name for p in sorted(directory.iterdir()) if p.suffix in PICKLE_SUFFIXES]
    if pickles:
        raise CheckpointError(
            f"'{directory}' holds only pickle weights ('{pickles[0]}'), which are refused: loading "
            "a pickle can run code. Save the model as safetensors "
            "(save_pretrained(..., safe_serialization=True))."
        )
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    raise CheckpointError(
        f"'{directory}' holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE}."
        + (f" '{others[0]}' is read only where an index names it." if others else "")
    )


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json_object(index)
    weight_map, metadata = content.get("weight_map"), content.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if not isinstance(metadata, (dict, type(None))) or not isinstance(
        total, (int, float, type(None))
    ):
        raise CheckpointError(f"'{index}' has a 'metadata' that no writer of shards makes.")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"'{index}' is not an index of shards: it has no 'weight_map'.")
    strange = [name for name in weight_map.values() if not isinstance(name, str) or "\0" in name]
    if strange:
        raise CheckpointError(f"'{index}' names a shard that is not a file name: {strange[0]!r}.")
    outside = [name for name in weight_map.values() if Path(name).name != name or name == ".."]
    if outside:
        raise CheckpointError(
            f"'{index}' names a file outside its directory: {outside[0]!r}. Put the shards beside "
            "the index, and name them without directories."
        )
    return dict(weight_map)


def _require_indexed(index: Path, tensors: dict[str, TensorInfo]) -> None:
    for name, file in _weight_map(index).items():
        if name not in tensors or tensors[name].file != file:
            raise CheckpointError(
                f"'{index}' says that {name!r} is in '{file}', and it is not there. "
                "Download or copy the checkpoint again."
            )
    unlisted = sorted(tensors.keys() - _weight_map(index).keys())
    if unlisted:
        raise CheckpointError(
            f"'{index}' does not list {unlisted[0]!r}, which '{tensors[unlisted[0]].file}' holds: "
            "the index is of other files. Download or copy the checkpoint again."
        )


def _parse_header(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = parse_json(raw, is_unique=True)
    except ValueError as error:
        raise CheckpointError(f"'{path}' has no readable safetensors header: {error}.") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"'{path}' has no readable safetensors header.")
    return header


def _require_side_by_side(path: Path, header: dict[str, Any]) -> None:
    at, last = 0, ""
    for name, entry in sorted(header.items(), key=lambda each: each[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        if begin != at:
            word = "overlaps" if begin < at else "leaves a gap after"
            raise CheckpointError(
                f"'{path}': {name!r} begins at byte {begin} and {word} {last!r}, which ends at "
                f"{at}. Download or copy it again."
            )
        at, last = end, name


def _is_entry(entry: Any) -> bool:
    """Return True for an entry with a type, a list of sizes, and two offsets."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    are_counts = all(type(n) is int and 0 <= n < MAX_COUNT for n in (*shape, *offsets))
    return are_counts and len(shape) <= MAX_DIMENSIONS


def _parse_entry(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    if not _is_entry(entry):
        raise CheckpointError(
            f"'{path}': the header's entry for {name!r} has no dtype, shape and two data_offsets "
            "that could be a tensor's. Download or copy it again."
        )
    if entry["dtype"] not in ELEMENT_BYTES:
        raise CheckpointError(f"'{path}': {name!r} has the unknown type {entry['dtype']!r}.")
    begin, end = entry["data_offsets"]
    info = TensorInfo(entry["dtype"], tuple(entry["shape"]), path.name, start + begin)
    if end - begin != info.num_bytes:
        raise CheckpointError(
            f"'{path}': {name!r} takes {end - begin} bytes, but {info.dtype} of shape "
            f"{list(info.shape)} needs {info.num_bytes}. Download or copy it again."
        )
    return info
