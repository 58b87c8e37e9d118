"""The gptqmodel backend, through transformers' GPTQConfig: GPTQ in AutoGPTQ's checkpoint format.

It writes format v1, which every engine that reads GPTQ knows. transformers saves it: optimum's
own `save` labels v1 weights as v2, and such a checkpoint computes nonsense.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from quantdraft.common.quiet import disk_errors, quiet
from quantdraft.errors import RecipeError
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
    with quiet(job.progress) as progress, _disable_compiling(), disk_errors():
        require_packages(job.recipe)
        num_tokens = sum(len(sample) for sample in job.samples)
        progress(f"calibrating on {len(job.samples)} samples, {num_tokens} tokens")
        try:
            model = _load_and_quantize(job)
        except (ValueError, NotImplementedError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise RecipeError(
                f"recipe {job.recipe.name!r} cannot be applied to this draft: {first_line}"
            ) from error
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

    from quantdraft.checkpoints.tensors.loading import pick_dtype

    torch.manual_seed(job.recipe.calibration.seed if job.recipe.calibration else 0)
    return load_and_quantize(job, pick_dtype("auto", torch.device(job.device)), _config(job))


def _config(job: QuantizationJob) -> Any:
    import torch
    from transformers import GPTQConfig

    from quantdraft.checkpoints.tensors.loading import load_tokenizer

    fmt = weight_format(job.recipe)
    assert fmt is not None  # this backend has one scheme, and it quantizes
    rows = [torch.tensor([sample]) for sample in job.samples]
    return GPTQConfig(
        bits=fmt.num_bits,
        group_size=fmt.group_size or -1,
        sym=fmt.is_symmetric,
        desc_act=False,
        # token ids, so that they are the very samples of the other backends
        dataset=[{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows],
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


@contextlib.contextmanager
def _disable_compiling() -> Iterator[None]:
    """Pack in Python: gptqmodel would compile C++ for half a minute to save one second."""
    name = "GPTQMODEL_DISABLE_PACK_EXT"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
