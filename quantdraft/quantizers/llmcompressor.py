"""The llm-compressor backend: data-free on the safetensors themselves, or calibrated by GPTQ."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from quantdraft.errors import CheckpointError, MissingPackageError, RecipeError
from quantdraft.files import write_json
from quantdraft.quantizers.job import QuantizationJob
from quantdraft.schemes import (
    HEAD,
    WeightFormat,
    formats_by_module,
    head_format,
    ignored_names,
    weight_format,
)


def quantize(job: QuantizationJob) -> None:
    """Quantize `job.source` into `job.output`.

    Raises MissingPackageError without llm-compressor, RecipeError where it refuses the draft, and
    OSError where the disk does (errno kept, also when the writer reports it in another type).
    """
    with _quiet(job.progress) as progress, _disk_errors():
        _require_package(job)
        if job.recipe.method == "gptq":
            _calibrated(job, progress)
        else:
            _data_free(job, progress)


def _require_package(job: QuantizationJob) -> None:
    try:
        import llmcompressor  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"recipe {job.recipe.name!r} needs the package 'llmcompressor': "
            "pip install 'quantdraft[llmcompressor]'"
        ) from error
    _silence()


def _silence() -> None:
    """Switch off the libraries' loggers, which write to whatever stdout was when they started."""
    import logging

    from loguru import logger

    for library in ("llmcompressor", "compressed_tensors"):
        logger.disable(library)
    try:
        logger.level("METRIC")
    except (
        ValueError
    ):  # absent where the user has switched the logs off, and logged to all the same
        logger.level("METRIC", no=38)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def _data_free(job: QuantizationJob, progress: Callable[[str], None]) -> None:
    """Round to nearest, one file at a time: memory for about one shard."""
    from llmcompressor import model_free_ptq

    progress("quantizing the safetensors")
    try:
        model_free_ptq(
            job.source.path, job.output, config=_quantization_config(job), device=job.device
        )
    except (ValueError, NotImplementedError) as error:
        raise RecipeError(_refusal(job, error)) from error


def _calibrated(job: QuantizationJob, progress: Callable[[str], None]) -> None:
    """GPTQ on the samples; the model is in memory, float32 where bfloat16 is slow."""
    import torch
    from llmcompressor import oneshot

    from quantdraft.models import load_model, load_tokenizer, pick_dtype

    device = torch.device(job.device)
    progress("loading the draft")
    model = load_model(job.source.path, pick_dtype("auto", device), device)
    _fix_seeds(job.recipe.calibration.seed if job.recipe.calibration else 0)
    num_tokens = sum(len(sample) for sample in job.samples)
    progress(f"calibrating on {len(job.samples)} responses, {num_tokens} tokens")
    # The head's modifier takes scales of every layer anew; GPTQ has the last word on its own.
    modifiers = [*_head_modifiers(job), _gptq_modifier(job, progress)]
    oneshot(
        model=model,
        processor=load_tokenizer(job.source.path),  # asked for, not used: the batches are ids
        recipe=modifiers,
        dataset=_batches(job),
        pipeline="sequential",
    )
    _save(model, job)


def _save(model: Any, job: QuantizationJob) -> None:
    """Write the model in the source's float type.

    The untouched weights came from that type and return to it exactly; the scales are rounded to
    it, by less than a 256th, which changes no integer.
    """
    import torch

    dtype = _stored_dtype(job)
    model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    with warnings.catch_warnings(action="ignore"):  # of offloaded modules, where there are none
        model.save_pretrained(job.output, save_compressed=True)
    _release_names(job)
    for leftover in ("recipe.yaml", "generation_config.json"):
        (job.output / leftover).unlink(missing_ok=True)


def _release_names(job: QuantizationJob) -> None:
    """Write our own config groups: the library resolves patterns to this model's exact names.

    It also keeps a head that was rounded apart in a group of its own, needed or not.
    """
    path = job.output / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    ours = _quantization_config(job).model_dump()
    config["quantization_config"] |= {key: ours[key] for key in ("config_groups", "ignore")}
    write_json(path, config)


def _gptq_modifier(job: QuantizationJob, progress: Callable[[str], None]) -> Any:
    from llmcompressor.modifiers.gptq import GPTQModifier

    class ReportingGPTQModifier(GPTQModifier):  # type: ignore[misc]
        """GPTQ that says how far it is."""

        def compress_module_list(self, module_list: list[Any]) -> None:
            super().compress_module_list(module_list)
            if module_list:
                progress(f"quantized {self._num_compressed_modules} of {num_modules} layers")

        def on_finalize(self, state: Any, **kwargs: Any) -> bool:
            if self._rtn_fallback_module_names:
                names = ", ".join(self._rtn_fallback_module_names[:3])
                raise CheckpointError(
                    f"GPTQ could not invert the Hessian of {len(self._rtn_fallback_module_names)} "
                    f"layers ({names}, …). Calibrate on more responses."
                )
            return bool(super().on_finalize(state, **kwargs))

    config = _quantization_config(job)
    modules = formats_by_module(job.recipe, job.source.tensors)
    num_modules = sum(1 for module in modules if module != HEAD)
    ReportingGPTQModifier.__name__ = "GPTQModifier"  # the library looks its arguments up by name
    body = {"group_0": config.config_groups["group_0"]}
    return ReportingGPTQModifier(config_groups=body, ignore=[*config.ignore, HEAD])


def _head_modifiers(job: QuantizationJob) -> list[Any]:
    """The head rounds to nearest: calibration runs the decoder layers, not the head."""
    from llmcompressor.modifiers.quantization import QuantizationModifier

    head = head_format(job.recipe)
    if head is None:
        return []
    return [QuantizationModifier(config_groups={"head": _scheme(head, f"re:(.*\\.)?{HEAD}$")})]


def _batches(job: QuantizationJob) -> Any:
    """One response a batch, so that no padding enters the Hessians."""
    import torch
    from torch.utils.data import DataLoader

    rows = [torch.tensor([sample]) for sample in job.samples]
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows]
    return DataLoader(batches, batch_size=None, shuffle=False)  # type: ignore[arg-type]


def _quantization_config(job: QuantizationJob) -> Any:
    from compressed_tensors.quantization import QuantizationConfig

    body, head = weight_format(job.recipe), head_format(job.recipe)
    assert body is not None  # the identity recipe has another backend
    groups = {}
    if head is not None and head != body:
        # First, because the first group that matches a tensor wins.
        groups["head"] = _scheme(head, f"re:(.*\\.)?{HEAD}$")
    groups["group_0"] = _scheme(body, "Linear")
    return QuantizationConfig(config_groups=groups, ignore=ignored_names(job.recipe))


def _scheme(fmt: WeightFormat, target: str) -> Any:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    strategy = "block" if fmt.block else "group" if fmt.group_size else "channel"
    weights = QuantizationArgs(
        num_bits=fmt.num_bits,
        type=fmt.kind,
        strategy=strategy,
        group_size=fmt.group_size,
        block_structure=list(fmt.block) if fmt.block else None,
        symmetric=fmt.is_symmetric,
        dynamic=False,
    )
    return QuantizationScheme(
        targets=[target], weights=weights, input_activations=_input_args(fmt), format=fmt.layout
    )


def _input_args(fmt: WeightFormat) -> Any:
    from compressed_tensors.quantization import QuantizationArgs

    if fmt.activations is None:
        return None
    return QuantizationArgs(
        num_bits=8,
        type="int" if fmt.activations == "int8" else "float",
        strategy="group" if fmt.block else "token",
        group_size=fmt.block[1] if fmt.block else None,
        symmetric=True,
        dynamic=True,
    )


def _stored_dtype(job: QuantizationJob) -> str:
    """The source's own float type, by torch's name: that of its largest tensor."""
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    largest = max(job.source.tensors.values(), key=lambda info: info.num_bytes)
    return names[largest.dtype]


def _fix_seeds(seed: int) -> None:
    import torch

    torch.manual_seed(seed)


def _refusal(job: QuantizationJob, error: Exception) -> str:
    first_line = str(error).strip().splitlines()[0]
    return f"recipe {job.recipe.name!r} cannot be applied to this draft: {first_line}"


@contextlib.contextmanager
def _quiet(progress: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Hide the libraries' logs and bars; the progress yielded still reaches the real stderr."""
    stdout, stderr = sys.stdout, sys.stderr

    def report(message: str) -> None:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            progress(message)

    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # else llm-compressor sets it, and warns
    hidden = io.StringIO()
    with contextlib.redirect_stdout(hidden), contextlib.redirect_stderr(hidden):
        yield report


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """The safetensors writer wraps the system's error in its own type: unwrap it."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            if f"code: {code}," in str(error) or f"os error {code})" in str(error):
                raise OSError(code, os.strerror(code)) from error
        raise CheckpointError(f"cannot read or write safetensors: {error}") from error
