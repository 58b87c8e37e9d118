"""The llm-compressor backend: data-free on the safetensors themselves, or calibrated in memory."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from quantdraft.checkpoints.stored_formats import HEAD
from quantdraft.common.progress import bar
from quantdraft.common.quiet import disk_errors, quiet
from quantdraft.errors import CheckpointError, RecipeError
from quantdraft.quantize.backends.config_groups import (
    HEAD_TARGET,
    KV_CACHE_FP8,
    quantization_config,
    scheme,
)
from quantdraft.quantize.backends.job import QuantizationJob
from quantdraft.quantize.backends.loaded_model import edit_config, save_model
from quantdraft.quantize.backends.packages import require_packages
from quantdraft.quantize.backends.rewriting import rewrite_weights
from quantdraft.quantize.recipe_formats import formats_by_module, head_format

# How much of the inputs' range moves into the weights; llm-compressor's own examples use it.
SMOOTHING_STRENGTH = 0.8


def quantize(job: QuantizationJob) -> None:
    """Quantize `job.source` into `job.output`.

    Raises MissingPackageError without llm-compressor, RecipeError where it refuses the draft, and
    OSError where the disk does (errno kept, also when the writer reports it in another type).
    """
    with quiet(job.progress) as progress, disk_errors():
        require_packages(job.recipe)
        _silence_loggers()
        job = replace(job, progress=progress)
        if job.recipe.needs_calibration or job.recipe.modifiers is not None:
            _quantize_in_memory(job)
        else:
            _quantize_files(job)


def _silence_loggers() -> None:
    """Switch off the libraries' loggers, which write to whatever stdout was when they started."""
    import logging

    from loguru import logger

    for library in ("llmcompressor", "compressed_tensors"):
        logger.disable(library)
    try:
        logger.level("METRIC")
    except ValueError:  # absent where the user switched the logs off, and logged to all the same
        logger.level("METRIC", no=38)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def _quantize_files(job: QuantizationJob) -> None:
    """Round to nearest, as the library's `model_free_ptq` does, but a few tensors at a time.

    The library holds a whole file, and starts every weight with random numbers. The result is
    the same to the byte.
    """
    from llmcompressor.entrypoints.model_free.converter import ModelFreePtqConverter
    from llmcompressor.entrypoints.model_free.save_utils import update_config
    from transformers.initialization import no_init_weights

    job.progress("quantizing the safetensors")
    config = quantization_config(job.recipe, job.source.tensors)
    shutil.copyfile(job.source.path / "config.json", job.output / "config.json")
    try:
        with no_init_weights():
            rewrite_weights(job.source, job.output, ModelFreePtqConverter(config), job.device)
    except (ValueError, NotImplementedError) as error:
        raise job.refusal(error) from error
    update_config(job.output, config)


def _quantize_in_memory(job: QuantizationJob) -> None:
    """Calibrate by forward passes over the samples, in float32 where bfloat16 is slow."""
    import torch
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader

    from quantdraft.checkpoints.tensors.devices import pick_dtype
    from quantdraft.checkpoints.tensors.experts import every_token_to_every_expert
    from quantdraft.checkpoints.tensors.loading import load_model, load_tokenizer

    device = torch.device(job.device)
    job.progress("loading the draft")
    dtype = pick_dtype("auto", device)
    model = load_model(job.source.path, dtype, device, has_separate_experts=True)
    job.start_calibration()
    batches: Any = DataLoader(job.batches(), batch_size=None, shuffle=False)  # type: ignore[arg-type]
    data = {"dataset": batches, "pipeline": "sequential"} if job.samples else {}
    with _disable_pinning(), _show_progress(job), every_token_to_every_expert():
        try:
            oneshot(
                model=model,
                processor=load_tokenizer(job.source.path),  # asked for, not used: batches are ids
                recipe=_modifiers(job),
                **data,
            )
        except (ValueError, NotImplementedError, KeyError, TypeError) as error:
            raise job.refusal(error) from error
    _save_model(model, job)


def _modifiers(job: QuantizationJob) -> Any:
    """Return llm-compressor's own recipe: its modifiers in order, or the verbatim text."""
    if job.recipe.modifiers is not None:
        # The library takes text, or objects; this is the text its own files have.
        return json.dumps({"quantdraft_stage": {"verbatim_modifiers": job.recipe.modifiers}})
    if job.recipe.method == "gptq":
        # The head's modifier computes scales of every layer again, so GPTQ's own come last.
        return [*_head_modifiers(job), _gptq_modifier(job)]
    if job.recipe.method == "autoround":
        return [_autoround_modifier(job)]
    return [*_rescaling_modifiers(job), _rounding_modifier(job)]


def _rescaling_modifiers(job: QuantizationJob) -> list[Any]:
    if job.recipe.method == "awq":
        from llmcompressor.modifiers.transform.awq import AWQModifier

        return [AWQModifier()]
    if job.recipe.method == "smoothquant":
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

        return [SmoothQuantModifier(smoothing_strength=SMOOTHING_STRENGTH)]
    return []


def _rounding_modifier(job: QuantizationJob) -> Any:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    cache = None if job.recipe.kv_cache == "keep" else KV_CACHE_FP8
    config = quantization_config(job.recipe, job.source.tensors)
    if not config.config_groups:
        return QuantizationModifier(ignore=config.ignore, kv_cache_scheme=cache)
    return QuantizationModifier(
        config_groups=config.config_groups, ignore=config.ignore, kv_cache_scheme=cache
    )


def _gptq_modifier(job: QuantizationJob) -> Any:
    from llmcompressor.modifiers.gptq import GPTQModifier

    class ReportingGPTQModifier(GPTQModifier):  # type: ignore[misc]
        """GPTQ that reports its progress."""

        def compress_module_list(self, module_list: list[Any]) -> None:
            super().compress_module_list(module_list)
            if module_list:
                job.progress(f"quantized {self._num_compressed_modules} of {num_modules} layers")

        def on_finalize(self, state: Any, **kwargs: Any) -> bool:
            if self._rtn_fallback_module_names:
                names = ", ".join(self._rtn_fallback_module_names[:3])
                raise CheckpointError(
                    f"GPTQ could not invert the Hessian of {len(self._rtn_fallback_module_names)} "
                    f"layers ({names}, …). Calibrate on more responses."
                )
            return bool(super().on_finalize(state, **kwargs))

    config = quantization_config(job.recipe, job.source.tensors)
    modules = formats_by_module(job.recipe, job.source.tensors)
    num_modules = sum(1 for module in modules if module != HEAD)
    ReportingGPTQModifier.__name__ = "GPTQModifier"  # the library looks its arguments up by name
    body = {"group_0": config.config_groups["group_0"]}
    return ReportingGPTQModifier(config_groups=body, ignore=[*config.ignore, HEAD])


def _autoround_modifier(job: QuantizationJob) -> Any:
    from llmcompressor.modifiers.autoround import AutoRoundModifier

    config = quantization_config(job.recipe, job.source.tensors)
    return AutoRoundModifier(
        config_groups=config.config_groups,
        ignore=config.ignore,
        iters=job.recipe.iterations,
        batch_size=1,  # samples differ in length
        enable_torch_compile=False,  # minutes of compiling for each shape
    )


def _head_modifiers(job: QuantizationJob) -> list[Any]:
    """Return the modifier that rounds the head to nearest: calibration does not run the head."""
    from llmcompressor.modifiers.quantization import QuantizationModifier

    head = head_format(job.recipe)
    if head is None:
        return []
    return [QuantizationModifier(config_groups={"head": scheme(head, HEAD_TARGET)})]


@contextlib.contextmanager
def _show_progress(job: QuantizationJob) -> Iterator[None]:
    """Show a bar over the decoder layers, and what follows them, as they are calibrated."""
    from llmcompressor.core import LifecycleCallbacks

    original = LifecycleCallbacks.sequential_epoch_end
    num_layers = int(job.source.text_config.get("num_hidden_layers", 0))
    with bar(num_layers + 1, "calibrate", "layer") as advance:

        def end_epoch(_: Any, modules: list[Any], **options: Any) -> Any:
            result = original(modules, **options)
            advance(1)
            return result

        with _replaced_method(LifecycleCallbacks, "sequential_epoch_end", end_epoch):
            yield


@contextlib.contextmanager
def _disable_pinning() -> Iterator[None]:
    """Keep AWQ from pinning the memory of its cache, which fails where there is no accelerator."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available():
        yield
        return
    with _replaced_method(IntermediatesCache, "_pin_intermediate", lambda *_: None):
        yield


@contextlib.contextmanager
def _replaced_method(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Give a class of the library another class method while the block runs."""
    original = vars(owner)[name]
    setattr(owner, name, classmethod(method))
    try:
        yield
    finally:
        setattr(owner, name, original)


def _save_model(model: Any, job: QuantizationJob) -> None:
    """Write the model in the source's float type.

    The untouched weights came from that type and return to it exactly; the scales are rounded to
    it, by less than a 256th, which changes no integer. NVFP4's scale of a whole matrix stays
    float32: rounded, it would move every weight of it the same way.
    """
    import torch

    dtype = getattr(torch, job.source_dtype)
    whole = {n: p.data.float() for n, p in model.named_parameters() if n.endswith("global_scale")}
    model.to(dtype)
    for name, parameter in model.named_parameters():
        if name in whole:
            parameter.data = whole[name]
    model.config.dtype = dtype
    save_model(job, model, ("recipe.yaml",), save_compressed=True)
    with edit_config(job) as config:
        _release_names(job, config)


def _release_names(job: QuantizationJob, config: dict[str, Any]) -> None:
    """Put our own config groups in: the library resolves patterns to this model's exact names.

    It also keeps a head that was rounded apart in a group of its own, needed or not. Of a verbatim
    recipe the groups are kept, and its names become patterns that match under any prefix.
    """
    quantization = config.get("quantization_config")
    if quantization is None:
        raise RecipeError(f"recipe {job.recipe.name!r} left a model that is not quantized.")
    if job.recipe.modifiers is not None:
        names = quantization.get("ignore") or []
        quantization["ignore"] = [
            name if name.startswith("re:") else f"re:(.*\\.)?{re.escape(name)}$" for name in names
        ]
    elif job.recipe.scheme != "none":
        ours = quantization_config(job.recipe, job.source.tensors).model_dump(mode="json")
        quantization |= {key: ours[key] for key in ("config_groups", "ignore")}
