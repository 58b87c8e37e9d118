"""Keep a draft's own MTP layers in what a back end writes: those that load a model lose them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.heads.inside import inner_mtp, inner_patterns
from quantdraft.checkpoints.weights import INDEX_FILE, SINGLE_FILE
from quantdraft.common.files import write_json

FIRST_FILE, SECOND_FILE = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
MTP_FILE = "model-mtp.safetensors"


def keep_mtp(source: Checkpoint, output: Path) -> None:
    """Write the MTP layers that are not there, as the source stores them, and name them in config.

    The config says that they are not quantized, in the words of the library that wrote it.
    """
    inner = inner_mtp(source)
    if not inner:
        return
    written = open_checkpoint(output)
    missing = [name for name in inner if name not in written.tensors]
    if missing:
        _write_missing(source, written, missing)
    _exclude(output, inner_patterns(inner))


def _write_missing(source: Checkpoint, written: Checkpoint, missing: list[str]) -> None:
    """Write the tensors into a file of their own; the index names it beside the others."""
    from safetensors.torch import save_file

    from quantdraft.checkpoints.tensors.unpacking import read_tensor

    output = written.path
    renamed = {SINGLE_FILE: FIRST_FILE} if (output / SINGLE_FILE).is_file() else {}
    for old, new in renamed.items():  # beside an index, transformers would read it alone
        (output / old).rename(output / new)
    file = SECOND_FILE if renamed else MTP_FILE
    tensors = {name: read_tensor(source, name) for name in missing}
    save_file(tensors, output / file, metadata={"format": "pt"})
    weight_map = {n: renamed.get(i.file, i.file) for n, i in written.tensors.items()}
    total = written.num_bytes + sum(tensor.nbytes for tensor in tensors.values())
    index = {
        "metadata": {"total_size": total},
        "weight_map": dict(sorted((weight_map | dict.fromkeys(missing, file)).items())),
    }
    write_json(output / INDEX_FILE, index)


def _exclude(output: Path, patterns: list[str]) -> None:
    path = output / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    quantization = config.get("quantization_config")
    if not quantization:
        return
    method = quantization.get("quant_method")
    plain = [pattern.removeprefix("re:") for pattern in patterns]
    if method == "gptq":
        quantization["dynamic"] = {
            **(quantization.get("dynamic") or {}),
            **{f"-:{each}": {} for each in plain},
        }
    elif method == "bitsandbytes":
        skipped = quantization.get("llm_int8_skip_modules") or []
        ends = [each.split(")?")[-1].removesuffix(r"\..*").replace("\\", "") for each in plain]
        quantization["llm_int8_skip_modules"] = list(dict.fromkeys([*skipped, *ends]))
    else:
        ignored = quantization.get("ignore") or []
        quantization["ignore"] = list(dict.fromkeys([*ignored, *patterns]))
    write_json(path, config)
