"""The gptqmodel backend, through transformers' GPTQConfig: GPTQ in AutoGPTQ's checkpoint format.

It writes format v1, which every engine that reads GPTQ knows. transformers saves it: optimum's
own `save` labels v1 weights as v2, and such a checkpoint computes nonsense.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from quantdraft.common.quiet import disk_errors, quiet
from quantdraft.quantize.backends.job import QuantizationJob
from quantdraft.quantize.backends.loaded_model import (
    edit_config,
    load_and_quantize,
    save_model,
)
from quantdraft.quantize.backends.packages import require_packages
from quantdraft.quantize.recipe_formats import weight_format

# One in each of eight 4-bit fields: what v1 takes off the zero points, and v2 does not.
ONE_IN_EVERY_FIELD = 0x11111111


def quantize(job: QuantizationJob) -> None:
    """Quantize `job.source` into `job.output`.

    Raises MissingPackageError without gptqmodel or optimum, RecipeError where they refuse the
    draft, and OSError where the disk does.
    """
    # Pack in Python: gptqmodel would compile C++ for half a minute to save one second.
    os.environ.setdefault("GPTQMODEL_DISABLE_PACK_EXT", "1")
    with quiet(job.progress) as progress, disk_errors():
        require_packages(job.recipe)
        job = replace(job, progress=progress)
        job.start_calibration()
        try:
            model = _load_and_quantize(job)
        except (ValueError, NotImplementedError) as error:
            raise job.refusal(error) from error
        _restore_types(model, job)
        _convert_to_v1(model)
        _forget_samples(model)
        save_model(job, model, ("quantize_config.json",))
        with edit_config(job) as config:
            for key in ("dataset", "tokenizer"):
                config["quantization_config"].pop(key, None)
            labels = {"checkpoint_format": "gptq", "format": "gptq", "lm_head": False}
            config["quantization_config"] |= labels


def _load_and_quantize(job: QuantizationJob) -> Any:
    import torch

    from quantdraft.checkpoints.tensors.devices import pick_dtype

    return load_and_quantize(job, pick_dtype("auto", torch.device(job.device)), _config(job))


def _config(job: QuantizationJob) -> Any:
    from transformers import GPTQConfig

    from quantdraft.checkpoints.tensors.loading import load_tokenizer

    fmt = weight_format(job.recipe)
    assert fmt is not None  # this backend has one scheme, and it quantizes
    return GPTQConfig(
        bits=fmt.num_bits,
        group_size=fmt.group_size or -1,
        sym=fmt.is_symmetric,
        desc_act=False,
        # token ids, so that they are the very samples of the other backends
        dataset=job.batches(),
        tokenizer=load_tokenizer(job.source.path),  # asked for, not used
    )


def _restore_types(model: Any, job: QuantizationJob) -> None:
    """Convert what was not quantized back to the float type of the source."""
    import torch

    dtype = getattr(torch, job.source_dtype)
    for parameter in model.parameters():
        if parameter.dtype.is_floating_point:
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


def _convert_to_v1(model: Any) -> None:
    """Store zero points as v1 does: one less, in each field."""
    for module in model.modules():
        if hasattr(module, "qzeros"):
            # Symmetric zero points are 8: no field borrows from the next.
            module.qzeros = module.qzeros - ONE_IN_EVERY_FIELD


def _forget_samples(model: Any) -> None:
    """Drop the samples: transformers would write somebody's text into config.json."""
    for key in ("dataset", "tokenizer"):
        setattr(model.config.quantization_config, key, None)
