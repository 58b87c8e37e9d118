"""The bitsandbytes backend, through transformers: NF4, FP4 and LLM.int8(), none of which need data.

transformers quantizes while it loads, and saves the result. bitsandbytes works on the
CPU as well; the file is the same.
"""

from __future__ import annotations

from typing import Any

from quantdraft.checkpoints.formats import LLM_INT8_THRESHOLD
from quantdraft.checkpoints.parts import kept_patterns
from quantdraft.checkpoints.stored_formats import linear_modules
from quantdraft.common.quiet import disk_errors, quiet
from quantdraft.quantize.backends.job import QuantizationJob
from quantdraft.quantize.backends.loaded_model import (
    edit_config,
    load_and_quantize,
    save_model,
)
from quantdraft.quantize.backends.packages import require_packages
from quantdraft.quantize.recipe_formats import formats_by_module, weight_format


def quantize(job: QuantizationJob) -> None:
    """Quantize `job.source` into `job.output`.

    Raises MissingPackageError without bitsandbytes, and OSError where the disk refuses.
    """
    with quiet(job.progress) as progress, disk_errors():
        require_packages(job.recipe)
        import torch

        progress("quantizing while loading the draft")
        model = load_and_quantize(job, getattr(torch, job.source_dtype), _config(job))
        save_model(job, model)
        with edit_config(job) as config:  # fields that only mirror others
            for key in [k for k in config["quantization_config"] if k.startswith("_load_in")]:
                del config["quantization_config"][key]


def _config(job: QuantizationJob) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    fmt = weight_format(job.recipe)
    assert fmt is not None  # every scheme of this backend quantizes
    if fmt.num_bits == 8:
        return BitsAndBytesConfig(
            load_in_8bit=True,
            llm_int8_threshold=LLM_INT8_THRESHOLD,
            llm_int8_skip_modules=_skipped_modules(job),
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=fmt.kind,
        bnb_4bit_use_double_quant=fmt.is_double,
        bnb_4bit_compute_dtype=getattr(torch, job.source_dtype),
        llm_int8_skip_modules=_skipped_modules(job),
    )


def _skipped_modules(job: QuantizationJob) -> list[str]:
    """Return the Linears that the recipe leaves as they are; the head is one, tied or not.

    The library reads a name as a pattern too, so that a tower is left out under any prefix.
    """
    quantized = formats_by_module(job.recipe, job.source.tensors)
    left = [name for name in linear_modules(job.source.tensors) if name not in quantized]
    kept = [pattern.removeprefix("re:") for pattern in kept_patterns(job.source.tensors)]
    return sorted({"lm_head", *left, *kept})
