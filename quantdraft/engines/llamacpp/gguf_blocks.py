"""Q4_0 by the `gguf` package, where llama.cpp's own quantizer is not built.

As llama-quantize does, norms stay as they are and the head keeps more bits; here it is Q8_0, as is
a table that serves as the head too.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from quantdraft.errors import MissingPackageError

BLOCK = 32  # weights that share a scale, in Q4_0 and Q8_0
HEAD, EMBEDDING = "output.weight", "token_embd.weight"


def quantize_file(source: Path, target: Path, llamacpp: Path | None = None) -> None:
    """Write `source`, a GGUF of 16- or 32-bit floats, with its matrices in Q4_0.

    Raises MissingPackageError where neither llama.cpp's sources nor the environment have `gguf`.
    """
    gguf = gguf_package(llamacpp)
    reader = gguf.GGUFReader(str(source))
    architecture = reader.get_field("general.architecture").contents()
    writer = gguf.GGUFWriter(str(target), architecture)
    _copy_fields(gguf, reader, writer)
    is_tied = all(tensor.name != HEAD for tensor in reader.tensors)
    for tensor in reader.tensors:
        kind = _type_of(gguf, tensor, is_tied)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _type_of(gguf: Any, tensor: Any, is_tied: bool) -> Any:
    kinds = gguf.GGMLQuantizationType
    if len(tensor.shape) < 2 or tensor.shape[0] % BLOCK:
        return kinds.F32
    is_head = tensor.name == HEAD or (is_tied and tensor.name == EMBEDDING)
    return kinds.Q8_0 if is_head else kinds.Q4_0


def _copy_fields(gguf: Any, reader: Any, writer: Any) -> None:
    """Copy everything that is not a tensor, except the type of the file."""
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in {"general.architecture", "general.file_type"}:
            continue
        kind = field.types[0]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=sub_type)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)


def gguf_package(llamacpp: Path | None) -> Any:
    """Import `gguf`: llama.cpp's own copy, or the installed one. Raises MissingPackageError."""
    own = None if llamacpp is None else str(llamacpp.absolute() / "gguf-py")
    if own is not None and own not in sys.path:
        sys.path.insert(0, own)
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise MissingPackageError(
            f"GGUF files are read and quantized by the package 'gguf' ({error}): "
            "pip install 'quantdraft[llamacpp]'"
        ) from error
