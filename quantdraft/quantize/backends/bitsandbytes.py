"""The bitsandbytes backend, through transformers: NF4, FP4 and LLM.int8(), none of which need data.

transformers quantizes while it loads, and saves what bitsandbytes made. bitsandbytes works on the
CPU as well; the file is the same.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

from quantdraft.checkpoints.formats import LLM_INT8_THRESHOLD
from quantdraft.checkpoints.stored_formats import linear_modules
from quantdraft.common.files import write_json
from quantdraft.common.quiet import disk_errors, quiet
from quantdraft.quantize.backends.job import QuantizationJob
from quantdraft.quantize.backends.packages import require_packages
from quantdraft.quantize.recipe_formats import formats_by_module, weight_format


def quantize(job: QuantizationJob) -> None:
    """Quantize `job.source` into `job.output`.

    Raises MissingPackageError without bitsandbytes, and OSError where the disk refuses.
    """
    with quiet(job.progress) as progress, disk_errors():
        require_packages(job.recipe)
        progress("quantizing while loading the draft")
        model = _loaded(job)
        with warnings.catch_warnings(action="ignore"):
            model.save_pretrained(job.output)
        _tidy(job)


def _loaded(job: QuantizationJob) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        job.source.path,
        dtype=getattr(torch, job.source_dtype),
        quantization_config=_config(job),
        device_map=job.device,
        use_safetensors=True,
        local_files_only=True,
    )


def _config(job: QuantizationJob) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    fmt = weight_format(job.recipe)
    assert fmt is not None  # every scheme of this backend quantizes
    if fmt.num_bits == 8:
        return BitsAndBytesConfig(
            load_in_8bit=True,
            llm_int8_threshold=LLM_INT8_THRESHOLD,
            llm_int8_skip_modules=_kept(job),
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=fmt.kind,
        bnb_4bit_use_double_quant=fmt.is_double,
        bnb_4bit_compute_dtype=getattr(torch, job.source_dtype),
        llm_int8_skip_modules=_kept(job),
    )


def _kept(job: QuantizationJob) -> list[str]:
    """Names of the Linears that the recipe leaves alone; the head is one, tied or not."""
    quantized = formats_by_module(job.recipe, job.source.tensors)
    left = [name for name in linear_modules(job.source.tensors) if name not in quantized]
    return sorted({"lm_head", *left})


def _tidy(job: QuantizationJob) -> None:
    """Drop what the caller copies itself, and fields that only mirror others."""
    (job.output / "generation_config.json").unlink(missing_ok=True)
    path = job.output / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    mirrored = [key for key in config["quantization_config"] if key.startswith("_load_in")]
    for key in mirrored:
        del config["quantization_config"][key]
    write_json(path, config)
