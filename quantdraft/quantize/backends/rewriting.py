"""Rewrite weight files a few tensors at a time, under their own names.

The new tensors of one file stay in memory until it is whole; those that are read do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.weights import INDEX_FILE
from quantdraft.common.files import write_json
from quantdraft.common.progress import bar

if TYPE_CHECKING:
    from torch import Tensor


class TensorConverter(Protocol):
    """Converts tensors; compressed-tensors' converters have this interface."""

    def get_dependencies(self, weight_name: str) -> Set[str]:
        """Return the names of the tensors that must be converted together with this one."""

    def process(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors to write in place of these."""


def rewrite_weights(
    source: Checkpoint, output: Path, conversion: TensorConverter, device: str = "cpu"
) -> None:
    """Write every weight file of `source`, converted, and their index into `output`.

    Tensors that depend on one another go into the file of the one that names the others.
    """
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    total_size = 0
    with bar(len(source.tensors), "quantize", "tensor") as advance:
        for file, groups in _groups_by_file(source, conversion).items():
            tensors: dict[str, Tensor] = {}
            for names in groups:
                tensors |= _convert(source, names, conversion, device)
                advance(len(names))
            # A width that is no multiple of 32 is packed as a slice, which safetensors refuses.
            save_file({name: each.contiguous() for name, each in tensors.items()}, output / file)
            weight_map |= dict.fromkeys(tensors, file)
            total_size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(output / INDEX_FILE, index)


def _convert(
    source: Checkpoint, names: list[str], conversion: TensorConverter, device: str
) -> Iterator[tuple[str, Tensor]]:
    from quantdraft.checkpoints.tensors.unpacking import read_tensor

    read = {name: read_tensor(source, name).to(device) for name in names}
    return ((name, tensor.cpu()) for name, tensor in conversion.process(read).items())


def _groups_by_file(source: Checkpoint, conversion: TensorConverter) -> dict[str, list[list[str]]]:
    """Return the names of each file, those together that are to be converted together."""
    partners = {
        name: sorted(conversion.get_dependencies(name) & source.tensors.keys())
        for name in source.tensors
    }
    follow = {name for group in partners.values() for name in group}
    groups: dict[str, list[list[str]]] = {}
    for name, info in source.tensors.items():
        of_file = groups.setdefault(info.file, [])
        if name not in follow:
            of_file.append([name, *partners[name]])
    return groups
