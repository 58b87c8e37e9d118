"""The gptqmodel backend, through transformers' GPTQConfig: GPTQ in AutoGPTQ's checkpoint format.

What it writes is format v1, which every engine of that line reads. transformers saves it: optimum's
own `save` labels v1 weights as v2, and such a checkpoint answers garbage.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from typing import Any

from quantdraft.common.files import write_json
from quantdraft.common.quiet import disk_errors, quiet
from quantdraft.errors import RecipeError
from quantdraft.quantize.backends.job import QuantizationJob
from quantdraft.quantize.backends.packages import require_packages
from quantdraft.quantize.recipe_formats import weight_format

# One in each of eight 4-bit fields: what v1 takes off the zero points, and v2 does not.
ONE_IN_EVERY_FIELD = 0x11111111


def quantize(job: QuantizationJob) -> None:
    """Quantize `job.source` into `job.output`.

    Raises MissingPackageError without gptqmodel or optimum, RecipeError where they refuse the
    draft, and OSError where the disk does.
    """
    with quiet(job.progress) as progress, _without_compiling(), disk_errors():
        require_packages(job.recipe)
        num_tokens = sum(len(sample) for sample in job.samples)
        progress(f"calibrating on {len(job.samples)} samples, {num_tokens} tokens")
        try:
            model = _quantized(job)
        except (ValueError, NotImplementedError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise RecipeError(
                f"recipe {job.recipe.name!r} cannot be applied to this draft: {first_line}"
            ) from error
        _to_stored_types(model, job)
        _to_v1(model)
        _forget_samples(model)
        with warnings.catch_warnings(action="ignore"):
            model.save_pretrained(job.output)
        _tidy(job)


def _quantized(job: QuantizationJob) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from quantdraft.checkpoints.tensors.loading import pick_dtype

    torch.manual_seed(job.recipe.calibration.seed if job.recipe.calibration else 0)
    return AutoModelForCausalLM.from_pretrained(
        job.source.path,
        dtype=pick_dtype("auto", torch.device(job.device)),
        quantization_config=_config(job),
        device_map=job.device,
        use_safetensors=True,
        local_files_only=True,
    )


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


def _to_stored_types(model: Any, job: QuantizationJob) -> None:
    """What was not quantized goes back to the source's float type; it came from there."""
    import torch

    dtype = getattr(torch, job.source_dtype)
    for parameter in model.parameters():
        if parameter.dtype.is_floating_point:
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


def _to_v1(model: Any) -> None:
    """Zero points as v1 stores them: one less, in each field."""
    for module in model.modules():
        if hasattr(module, "qzeros"):
            # Symmetric zero points are 8: no field borrows from the next.
            module.qzeros = module.qzeros - ONE_IN_EVERY_FIELD


def _forget_samples(model: Any) -> None:
    """transformers would write them into config.json: they are somebody's text."""
    for key in ("dataset", "tokenizer"):
        setattr(model.config.quantization_config, key, None)


def _tidy(job: QuantizationJob) -> None:
    path = job.output / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("dataset", "tokenizer"):
        config["quantization_config"].pop(key, None)
    config["quantization_config"] |= {
        "checkpoint_format": "gptq",
        "format": "gptq",
        "lm_head": False,
    }
    write_json(path, config)
    for leftover in ("generation_config.json", "quantize_config.json"):
        (job.output / leftover).unlink(missing_ok=True)


@contextlib.contextmanager
def _without_compiling() -> Iterator[None]:
    """Pack in Python: gptqmodel would compile C++ for half a minute to pack a second's worth."""
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
