"""What a safetensors checkpoint holds, read from its headers alone: no torch, no tensor data.

Layout of a file (https://huggingface.co/docs/safetensors): 8 bytes with the header's length, the
header as JSON, then the tensors' bytes at the offsets that the header gives.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantdraft.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
AUTO_GPTQ_FILES = "gptq_model*.safetensors"  # as auto-gptq named a model's one file
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
ELEMENT_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
FLOAT_DTYPES = frozenset({"F16", "BF16", "F32", "F64"})


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint, as its header describes it."""

    dtype: str  # as safetensors spells it: BF16, I32, F8_E4M3, …
    shape: tuple[int, ...]
    file: str  # name of the file that holds it

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor's data on disk."""
        return math.prod(self.shape) * ELEMENT_BYTES[self.dtype]


def read_tensors(directory: Path) -> dict[str, TensorInfo]:
    """Every tensor of a single or sharded checkpoint, by name.

    Raises CheckpointError for a missing shard, a truncated file or a header that contradicts it.
    """
    tensors: dict[str, TensorInfo] = {}
    for name in weight_files(directory):
        tensors |= read_header(directory / name)
    index = directory / INDEX_FILE
    if index.is_file():
        _require_indexed(index, tensors)
    return tensors


def weight_files(directory: Path) -> list[str]:
    """Names of the files that hold the weights, sorted; each of them exists."""
    index = directory / INDEX_FILE
    if not index.is_file():
        return [_require_single(directory)]
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if not (directory / name).is_file():
            raise CheckpointError(
                f"'{directory}' lacks the shard '{name}' that {INDEX_FILE} names. "
                "Download or copy it again."
            )
    return names


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one file; checks that the file is as long as its header says."""
    found = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if found < 8 or header_bytes > min(found - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"'{path}' is truncated or not safetensors: it has {found} bytes, its header "
                f"alone claims {header_bytes}. Download or copy it again."
            )
        header = _parse(path, file.read(header_bytes))
    header.pop("__metadata__", None)
    ends = [entry["data_offsets"][1] for entry in header.values()]
    expected = 8 + header_bytes + max(ends, default=0)
    if found != expected:
        word = "truncated" if found < expected else "longer than its header says"
        raise CheckpointError(
            f"'{path}' is {word}: expected {expected} bytes, found {found}. "
            "Download or copy it again."
        )
    return {name: _tensor(path, name, entry) for name, entry in header.items()}


def _require_single(directory: Path) -> str:
    if (directory / SINGLE_FILE).is_file():
        return SINGLE_FILE
    of_auto_gptq = sorted(directory.glob(AUTO_GPTQ_FILES))
    if len(of_auto_gptq) == 1:
        return of_auto_gptq[0].name
    pickles = [p.name for p in sorted(directory.iterdir()) if p.suffix in {".bin", ".pt", ".pth"}]
    if pickles:
        raise CheckpointError(
            f"'{directory}' holds only pickle weights ('{pickles[0]}'), which are refused: loading "
            "a pickle can run code. Save the model as safetensors "
            "(save_pretrained(..., safe_serialization=True))."
        )
    raise CheckpointError(
        f"'{directory}' holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE}."
    )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"'{index}' is not an index of shards: {error}.") from error
    outside = [name for name in weight_map.values() if Path(name).name != name]
    if outside:
        raise CheckpointError(f"'{index}' names a file outside its directory: {outside[0]!r}.")
    return dict(weight_map)


def _require_indexed(index: Path, tensors: dict[str, TensorInfo]) -> None:
    for name, file in _weight_map(index).items():
        if name not in tensors or tensors[name].file != file:
            raise CheckpointError(
                f"'{index}' says that {name!r} is in '{file}', and it is not there. "
                "Download or copy the checkpoint again."
            )


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise CheckpointError(f"'{path}' has no readable safetensors header: {error}.") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"'{path}' has no readable safetensors header.")
    return header


def _tensor(path: Path, name: str, entry: dict[str, Any]) -> TensorInfo:
    if entry["dtype"] not in ELEMENT_BYTES:
        raise CheckpointError(f"'{path}': {name!r} has the unknown type {entry['dtype']!r}.")
    info = TensorInfo(entry["dtype"], tuple(entry["shape"]), path.name)
    begin, end = entry["data_offsets"]
    if end - begin != info.num_bytes:
        raise CheckpointError(
            f"'{path}': {name!r} takes {end - begin} bytes, but {info.dtype} of shape "
            f"{list(info.shape)} needs {info.num_bytes}. Download or copy it again."
        )
    return info
