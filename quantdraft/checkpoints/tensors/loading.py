"""Load models and tokenizers: local directory or Hub id, safetensors only, no remote code."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.dense_view import stored_modules
from quantdraft.checkpoints.foreign_configs import HEAD
from quantdraft.checkpoints.other_kinds import require_directory, split_revision, tokenizer_code
from quantdraft.checkpoints.quantization_files import quantization_beside
from quantdraft.checkpoints.tensors.architecture import require_causal
from quantdraft.checkpoints.tensors.dequantized import load_dequantized
from quantdraft.checkpoints.tensors.devices import does_not_fit, require_room
from quantdraft.checkpoints.tensors.experts import separate_experts
from quantdraft.checkpoints.tensors.finite import require_finite_model
from quantdraft.checkpoints.tensors.inventory import require_complete
from quantdraft.checkpoints.tensors.rotary import fix_frequencies
from quantdraft.checkpoints.tensors.token_scales import keep_tokens_apart
from quantdraft.checkpoints.weights import INDEX_FILE, SINGLE_FILE, read_tensors, weight_files
from quantdraft.common.quiet import hush_torchao
from quantdraft.errors import (
    CheckpointError,
    MissingPackageError,
    first_line,
    is_out_of_memory,
    nearest_path,
)

LIBRARY_METHODS = ("compressed-tensors", "bitsandbytes")  # loaded by their own libraries
BNB_CPU_ROWS = 32  # its kernel for a CPU takes so many at once


def resolve_model(model: str, revision: str | None = None) -> Path:
    """Return a model's local directory: the path, or the Hub's snapshot of its safetensors.

    model: a directory, or a Hub id, also with its revision, `owner/name@revision`
    """
    path = Path(model)
    if path.is_dir():
        return path
    require_directory(path)
    name, own = split_revision(model)
    if model.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(
            f"no model directory '{model}'.{nearest_path(path)} Give a directory or a Hub id, "
            "'owner/name' or 'owner/name@revision'."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision or own,
                allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"],
            )
        )
    except Exception as error:  # the Hub client raises many kinds; all mean: not available
        raise CheckpointError(
            f"model '{model}' is neither a directory nor available from the Hub "
            f"({type(error).__name__}). Check the name, the revision, the network, and HF_TOKEN."
        ) from error


def load_model(
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
    ignore_quantization: bool = False,
    is_unpacked: bool = True,
    has_separate_experts: bool = False,
) -> Any:
    """Load a causal language model in `dtype`, on `device`, in eval mode.

    A quantized checkpoint comes back with its weights dequantized (and its activation quantization
    kept), which is what replay needs; latency never comes from such a model.

    ignore_quantization: load what the files hold, whatever the config claims of every layer
    is_unpacked: False leaves what compressed-tensors packed as it is stored: no forward pass works
    has_separate_experts: as `experts.separate_experts`, which compressed-tensors' are always
    """
    _silence_libraries()
    checkpoint = open_checkpoint(path)
    config = load_config(path, trust_remote_code, not ignore_quantization)
    require_complete(checkpoint, config)
    quantization = getattr(config, "quantization_config", None)
    num_bytes = _least_bytes(checkpoint, dtype)
    require_room(checkpoint.name, num_bytes, device)
    try:
        # compressed-tensors draws bars at loading and at the first forward, which unpacks.
        hidden = io.StringIO()
        with contextlib.redirect_stderr(hidden), contextlib.redirect_stdout(hidden):
            if ignore_quantization and stored_modules(checkpoint):  # a few layers are not dense
                model = load_dequantized(checkpoint, config, dtype, trust_remote_code)
            elif quantization is None:
                load = _load_experts if has_separate_experts else _load_by_transformers
                model = load(path, config, dtype, trust_remote_code)
            else:
                model = _load_quantized(
                    checkpoint, config, dtype, device, trust_remote_code, is_unpacked
                )
        model = model.to(device).eval()
        require_finite_model(model, path)
        return model
    except ImportError as error:
        method = str(_get_entry(quantization, "quant_method"))
        extra = {"gptq": "gptqmodel", "compressed-tensors": "llmcompressor"}.get(method, method)
        raise MissingPackageError(
            f"'{path}' is quantized by {method}, whose package is not installed: "
            f"pip install 'quantdraft[{extra}]'"
        ) from error
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:  # libraries raise many types for configs and tensors they cannot use
        if is_out_of_memory(error):
            why = f"the memory of {device} does not hold them"
            raise CheckpointError(does_not_fit(checkpoint.name, num_bytes, why)) from error
        raise CheckpointError(f"'{path}' cannot be loaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return what a library's error says, on one line."""
    if isinstance(error, ValidationError):
        return "; ".join(each["msg"] for each in error.errors(include_url=False))
    return first_line(error)


def _least_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """Return the bytes that the weights take at least, once loaded in `dtype`."""
    infos = checkpoint.tensors.values()
    if checkpoint.quantization is not None:
        return sum(info.num_bytes for info in infos)
    return sum(math.prod(info.shape) for info in infos) * dtype.itemsize


def require_loadable(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError unless the files hold the tensors that the architecture needs.

    Headers alone are read; draft heads have no architecture that transformers knows.
    """
    require_complete(checkpoint, load_config(checkpoint.path))


def _load_quantized(
    checkpoint: Checkpoint,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool,
    is_unpacked: bool,
) -> Any:
    """Load a quantized model that computes in `dtype`, whatever type its config names."""
    method = _get_entry(config.quantization_config, "quant_method")
    has_no_kernel = method == "bitsandbytes" and device.type == "cpu" and _has_odd_rows(checkpoint)
    if has_no_kernel or not is_read_by_library(checkpoint):
        _drop_quantization(config)
        return load_dequantized(checkpoint, config, dtype, trust_remote_code).to(device)
    if method == "bitsandbytes":
        name = str(dtype).removeprefix("torch.")
        _set_entry(config, "bnb_4bit_compute_dtype", name)
    if method == "compressed-tensors":
        # Unpack at loading: the first forward would do it in types that cannot multiply (FP4).
        _set_entry(config, "dequantize", is_unpacked)
        _set_entry(config, "quantization_status", "compressed")  # its parts are, it may not say so
        if checkpoint.has_tied_head:
            ignored = _get_entry(config.quantization_config, "ignore") or []
            _set_entry(config, "ignore", [*ignored, HEAD])
    with _without_packed_modules() if method == "compressed-tensors" else contextlib.nullcontext():
        load = _load_experts if method == "compressed-tensors" else _load_by_transformers
        model = load(checkpoint.path, config, dtype, trust_remote_code)
    if method == "compressed-tensors":
        keep_tokens_apart(model)
        if not is_unpacked:
            return model.to(device).eval()
        model = model.to(dtype)  # FP4 and MX are unpacked to bfloat16
    model = model.to(device).eval()
    with torch.no_grad():  # not inference mode: the unpacked weights may be used anywhere
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device))
    return model


def _has_odd_rows(checkpoint: Checkpoint) -> bool:
    """Return True for a number of rows that bitsandbytes' CPU kernel of 4 bits cannot take."""
    rows = (module.shape[0] for module in stored_modules(checkpoint) if module.fmt.num_bits == 4)
    return any(count % BNB_CPU_ROWS for count in rows)


def is_read_by_library(checkpoint: Checkpoint) -> bool:
    """Return True where the format's own library dequantizes all that the files hold.

    compressed-tensors drops the order of columns (`weight_g_idx`), packs by the scheme alone
    whatever layout the config names, and does not look into `compression_config`.
    """
    quantization = checkpoint.quantization or {}
    method = quantization.get("quant_method", LIBRARY_METHODS[0])
    if method != LIBRARY_METHODS[0]:
        return method in LIBRARY_METHODS
    modules = stored_modules(checkpoint)
    is_usual = all(m.fmt.own_layout is None and "weight_g_idx" not in m.parts for m in modules)
    return is_usual and "quantization_config" in {*checkpoint.config, *checkpoint.text_config}


def _set_entry(config: Any, key: str, value: Any) -> None:
    config.quantization_config = dict(config.quantization_config) | {key: value}


def _get_entry(quantization: Any, key: str) -> Any:
    is_dict = isinstance(quantization, dict)
    return quantization.get(key) if is_dict else getattr(quantization, key, None)


@contextlib.contextmanager
def _without_packed_modules() -> Iterator[None]:
    """Keep transformers from filling modules anew whose Linears are packed: these have no weight.

    It does so for what a file lacks, and Mamba's modules reach into their projections.
    """
    from transformers import PreTrainedModel

    original = PreTrainedModel._initialize_weights

    def initialize(model: Any, module: Any, *options: Any) -> None:
        try:
            original(model, module, *options)
        except AttributeError:
            linears = (child for child in module.children() if isinstance(child, torch.nn.Linear))
            if all(hasattr(linear, "weight") for linear in linears):
                raise
            module._is_hf_initialized = True

    PreTrainedModel._initialize_weights = initialize
    try:
        yield
    finally:
        PreTrainedModel._initialize_weights = original


def _load_experts(path: Path, config: Any, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """Load a model with its experts one by one: quantized, they have no place in one tensor."""
    with separate_experts(config, read_tensors(path)):
        return _load_by_transformers(path, config, dtype, trust_remote_code)


def _load_by_transformers(
    path: Path, config: Any, dtype: torch.dtype, trust_remote_code: bool
) -> Any:
    from transformers import AutoModelForCausalLM

    with _link_usual_names(path) as directory:
        model = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
        )
    fix_frequencies(model)
    return model


@contextlib.contextmanager
def _link_usual_names(path: Path) -> Iterator[Path]:
    """Yield the directory, or links to its files where transformers does not know a file's name."""
    if any((path / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="quantdraft.") as name:
        links, weights = Path(name), weight_files(path)
        for file in path.iterdir():
            usual = SINGLE_FILE if [file.name] == weights else file.name
            (links / usual).symlink_to(file.resolve())
        yield links


def load_config(path: Path, trust_remote_code: bool = False, keep_quantization: bool = True) -> Any:
    """Load the config of a model directory, with or without its quantization section."""
    from transformers import AutoConfig

    _silence_libraries()
    try:
        config = AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # the library checks what it is given, each field in its own way
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"'{path}' needs code of its own ('auto_map' in its config.json), which is not "
                "run. Read it; `quantdraft capture --trust-remote-code` then runs it, and its "
                "traffic is evaluated without --target."
            ) from error
        raise CheckpointError(
            f"'{path}' has a config.json that transformers refuses: {error}"
        ) from error
    if not trust_remote_code:  # code of its own is known to its user alone
        require_causal(config, path)
    # A config may name attention of the Hub ('owner/kernel'): code, fetched and run.
    config._attn_implementation = None
    found = getattr(config, "quantization_config", None)
    found = found or getattr(config, "compression_config", None) or quantization_beside(path)
    if found and not _get_entry(found, "quant_method"):  # compressed-tensors' older writers
        found = {**found, "quant_method": "compressed-tensors"}
    if found:
        config.quantization_config = found
    if not keep_quantization:
        _drop_quantization(config)
    return config


def _drop_quantization(config: Any) -> None:
    for holder in (config, config.get_text_config()):
        if hasattr(holder, "quantization_config"):
            del holder.quantization_config


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model directory."""
    from transformers import AutoTokenizer

    _silence_libraries()
    try:
        return AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # the library and its tokenizers raise errors of many types
        if (code := tokenizer_code(path)) is not None:
            raise CheckpointError(code) from error
        raise CheckpointError(
            f"'{path}' has no usable tokenizer. Copy tokenizer.json and tokenizer_config.json of "
            "the model it was made from into it."
        ) from error


def speller(path: Path) -> Callable[[Sequence[int]], list[str]]:
    """Return a function from token ids to the text of each, by a model directory's tokenizer.

    A token that holds part of a character gives its replacement character.
    """
    tokenizer = load_tokenizer(path)
    return lambda ids: [tokenizer.decode([each]) for each in ids]


def _silence_libraries() -> None:
    from transformers.utils import logging as transformers_logging

    hush_torchao()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for library in ("compressed_tensors", "bitsandbytes", "optimum", "gptqmodel"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="MatMul8bitLt")
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
