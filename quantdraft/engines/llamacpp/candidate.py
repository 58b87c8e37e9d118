"""A GGUF candidate as a checkpoint: its weights, dequantized, so that replay reads what it serves.

Left out: what transformers does not read from GGUF files, which is refused by its own message.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import MANIFEST_FILE, Checkpoint, open_checkpoint
from quantdraft.common.files import cache_dir, file_sha256, whole_directory, write_json
from quantdraft.common.progress import say
from quantdraft.engines.llamacpp.gguf import cached_gguf, plan_conversion, require_sources
from quantdraft.engines.llamacpp.gguf_blocks import gguf_package
from quantdraft.errors import OptionError
from quantdraft.record.step_bytes import Ledger

SUFFIX = ".gguf"
MANIFEST_KEY = "gguf"
TOKENIZER_SUFFIXES = {".json", ".model", ".txt", ".jinja"}


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The file that a candidate's weights were read from."""

    file: Path
    gguf_type: str  # of most of its bytes: q8_0, f16, …
    ledger: Ledger


def gguf_of(checkpoint: Checkpoint) -> GgufFile | None:
    """Return the GGUF that a checkpoint was dequantized from, or None."""
    found = (checkpoint.manifest or {}).get(MANIFEST_KEY)
    if found is None:
        return None
    return GgufFile(Path(found["file"]), str(found["type"]), Ledger(**found["ledger"]))


def candidate_checkpoint(name: str, baseline: str | None, llamacpp: Path | None) -> str:
    """Return the directory of a candidate's dequantized GGUF, made once and kept in the cache.

    Raises OptionError where its full-precision draft is not known, CheckpointError for a file that
    does not hold this draft.
    """
    from quantdraft.checkpoints.tensors.loading import resolve_model

    full = None if baseline is None else resolve_model(baseline)
    file = _gguf_in(Path(name))
    if file is None:
        candidate = open_checkpoint(resolve_model(name))
        if candidate.quantization is None:
            return name
        conversion = plan_conversion(candidate, full, None, require_sources(llamacpp))
        file, full = cached_gguf(conversion), conversion.source
        say(
            f"candidate: {conversion.gguf_type}, the GGUF of '{full}' with as many bits as "
            f"'{name}', whose own weights llama.cpp does not read"
        )
    elif full is None:
        raise OptionError(
            f"'{file}' does not say which full-precision draft it was made from. Give --baseline."
        )
    return str(_dequantized(file, open_checkpoint(full)))


def _gguf_in(path: Path) -> Path | None:
    """Return the GGUF file that a path is, or holds beside no other weights."""
    if path.suffix == SUFFIX and path.is_file():
        return path
    found = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else []
    return found[0] if len(found) == 1 and not any(path.glob("*.safetensors")) else None


def _dequantized(file: Path, source: Checkpoint) -> Path:
    digest = file_sha256(file)
    output = cache_dir() / "gguf" / f"{digest[:16]}-weights" / file.stem
    if (output / MANIFEST_FILE).is_file():
        return output
    from quantdraft.checkpoints.tensors.gguf import write_dequantized  # imports torch

    gguf_package(None)
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_directory(output, force=True) as staging:
        for path in source.path.iterdir():
            if path.is_file() and path.suffix in TOKENIZER_SUFFIXES and path.name != MANIFEST_FILE:
                shutil.copyfile(path, staging / path.name)
        write_dequantized(file, source, staging / "model.safetensors")
        write_json(staging / "config.json", {**source.config, "dtype": "float32"})
        write_json(staging / MANIFEST_FILE, _manifest(file, digest, source))
    return output


def _manifest(file: Path, digest: str, source: Checkpoint) -> dict[str, Any]:
    reader = gguf_package(None).GGUFReader(str(file))
    kind = _main_type(reader)
    return {
        "schema_version": 1,
        "draft": {"name": source.name, "path": str(source.path.absolute())},
        "recipe": {"name": f"gguf-{kind}", "summary": f"llama.cpp's {kind.upper()}."},
        MANIFEST_KEY: {
            "file": str(file.absolute()),
            "sha256": digest,
            "type": kind,
            "ledger": asdict(_ledger(reader, source)),
        },
    }


def _main_type(reader: Any) -> str:
    """Return the type that most bytes of matrices are stored in, in small letters."""
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        if len(tensor.shape) > 1:
            sizes[tensor.tensor_type.name.lower()] += int(tensor.n_bytes)
    return sizes.most_common(1)[0][0]


def _ledger(reader: Any, source: Checkpoint) -> Ledger:
    """Return what a draft step reads of the file, by part; its cache has 16 bits."""
    sums: Counter[str] = Counter()
    row_bytes = table_bytes = 0
    for tensor in reader.tensors:
        name, size = str(tensor.name), int(tensor.n_bytes)
        if name == "token_embd.weight":
            table_bytes, row_bytes = size, size // int(tensor.shape[-1])
            continue
        found = [part for part in ("norm", "attn", "ffn") if part in name]
        sums["head" if name.startswith("output.") else [*found, "other"][0]] += size
    config = source.text_config
    heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    return Ledger(
        attention_bytes=sums["attn"],
        mlp_bytes=sums["ffn"],
        head_bytes=sums["head"] or table_bytes,
        embedding_row_bytes=row_bytes,
        norms_bytes=sums["norm"],
        other_bytes=sums["other"],
        kv_bytes_per_context_token=2 * 2 * heads * head_dim * int(config["num_hidden_layers"]),
    )
