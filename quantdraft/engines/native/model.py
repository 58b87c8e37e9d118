"""Load a model that computes with the checkpoint's own integers, by real kernels.

transformers unpacks a compressed-tensors checkpoint and would time nothing of it. Here every
Linear becomes a module that holds the stored integers and scales and calls a kernel for them.
Models of the Llama family run on the project's own decoder; others keep the transformers library's
modules around the same kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from quantdraft.checkpoints.checkpoint import end_token_ids, first_token_ids
from quantdraft.checkpoints.claims import claims_but_not_quantized
from quantdraft.checkpoints.configs import read_generation_config
from quantdraft.checkpoints.dense_view import says_cache
from quantdraft.checkpoints.stored_formats import HEAD
from quantdraft.common.quiet import hush_torchao
from quantdraft.engines.kernels import kernels_for
from quantdraft.engines.kernels.c_library import INSTRUCTION_SETS
from quantdraft.engines.kernels.dense import type_name
from quantdraft.engines.native.borrowed import load_borrowed
from quantdraft.engines.native.decoder import Decoder, DecoderShape, Layer, Rotary, unsupported
from quantdraft.engines.native.linears import Linears
from quantdraft.engines.native.weight_sources import WeightSource
from quantdraft.errors import CheckpointError, NoKernelError

EXACT_KERNELS = (
    "linear_float32",
    "weight_first_float32",
    "onednn_prepacked_float32",
    *(f"{kind}_few_rows_{name}" for kind in ("bf16", "f32") for name in INSTRUCTION_SETS),
)


@dataclass(frozen=True, slots=True)
class NativeModel:
    """A model ready to decode, and what it computes with."""

    model: Any  # Decoder, or a transformers model
    runtime: str  # "native decoder" | "transformers modules"
    compute_dtype: str
    kernels: tuple[str, ...]
    weight_bytes: int  # resident, embedding table included
    source: WeightSource | None  # None: a transformers model that was loaded elsewhere
    end_token_ids: tuple[int, ...] = ()
    quantized_bytes: int = 0  # resident, of the quantized layers: the largest packing of each
    promised_bytes: int = 0  # what these layers come to in their formats

    @property
    def dtype(self) -> torch.dtype:
        """The float type of activations."""
        dtype: torch.dtype = getattr(torch, self.compute_dtype)
        return dtype

    @property
    def is_exact(self) -> bool:
        """True where every product is a float32 sum, so that near-ties fall as in a replay."""
        return self.dtype == torch.float32 and all(
            part in EXACT_KERNELS for kernel in self.kernels for part in kernel.split("+")
        )

    @property
    def is_own(self) -> bool:
        """True on the project's decoder, which batches, compiles and is captured in graphs."""
        return isinstance(self.model, Decoder)

    def step_bytes(self, batch_size: int, context_length: int) -> int:
        """Return the bytes one step reads by the ledger: weights, keys and values of every row."""
        assert self.source is not None
        ledger = self.source.ledger
        kv_bytes = ledger.cache_bytes(context_length) * batch_size
        stored = self.source.config.get("dtype") or self.source.config.get("torch_dtype")
        width = self.dtype.itemsize / (4 if stored == "float32" else 2)
        return ledger.weight_bytes + int(kv_bytes * width)


def load_native(
    source: WeightSource, dtype: torch.dtype, device: torch.device, rows: Sequence[int] = (1,)
) -> NativeModel:
    """Load a model to compute in `dtype`; NoKernelError where no kernel takes its format.

    rows: the numbers of rows (batch x new tokens) it will be run with; kernels are chosen for them
    """
    checkpoint = source.checkpoint
    if checkpoint is not None:
        false_claim = claims_but_not_quantized(checkpoint)
        if false_claim is not None:
            raise NoKernelError(false_claim)
        if says_cache(checkpoint.quantization):
            raise NoKernelError("the native engine has no quantized cache of keys and values")
        if checkpoint.quantization is not None and not source.formats:
            method = checkpoint.quantization.get("quant_method")
            raise NoKernelError(f"no native kernel reads checkpoints of the kind {method!r}")
    for name in {fmt.name for fmt in source.formats.values()}:
        kernels_for(device.type, name)  # before anything is loaded
    hush_torchao()  # transformers brings it
    config = _transformers_config(source)
    generation = {} if checkpoint is None else read_generation_config(checkpoint.path)
    linears = Linears(source, dtype, device, tuple(rows))
    if unsupported(config) is None:
        model: nn.Module = _decoder(config, source, linears)
        runtime = "native decoder"
    else:
        model = load_borrowed(config, source, linears)
        runtime = "transformers modules"
    return NativeModel(
        model=model,
        runtime=runtime,
        compute_dtype=type_name(dtype),
        kernels=tuple(sorted(linears.kernels)),
        weight_bytes=_weight_bytes(model),
        source=source,
        end_token_ids=first_token_ids(
            generation.get("eos_token_id"),
            getattr(config.get_text_config(), "eos_token_id", None),
        ),
        quantized_bytes=linears.quantized_bytes,
        promised_bytes=linears.promised_bytes,
    )


def decoder_fault(source: WeightSource) -> str | None:
    """Return why the project's decoder cannot run a checkpoint's architecture, or None."""
    return unsupported(_transformers_config(source))


def borrow(model: Any) -> NativeModel:
    """Wrap a loaded transformers model as it is, dequantized; it is never timed."""
    name = type_name(model.dtype)
    return NativeModel(
        model=model,
        runtime="transformers modules",
        compute_dtype=name,
        kernels=(f"linear_{name}",),
        weight_bytes=_weight_bytes(model),
        source=None,
        end_token_ids=end_token_ids(model),
    )


def _decoder(config: Any, source: WeightSource, linears: Linears) -> Decoder:
    shape = DecoderShape.of(config)
    embedding = linears.table("model.embed_tokens.weight")
    is_tied = not source.has(f"{HEAD}.weight") and HEAD not in source.formats
    return Decoder(
        shape,
        embedding,
        [
            _layer(shape, f"model.layers.{index}", source, linears)
            for index in range(shape.num_layers)
        ],
        linears.tensor("model.norm.weight"),
        linears.one(HEAD, tied_to=embedding if is_tied else None),
        _rotary(config, linears.device),
    )


def _layer(shape: DecoderShape, prefix: str, source: WeightSource, linears: Linears) -> Layer:
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    has_head_norms = source.has(f"{attention}.q_norm.weight")
    return Layer(
        shape,
        qkv=linears.fused([f"{attention}.{name}_proj" for name in "qkv"]),
        out=linears.one(f"{attention}.o_proj"),
        gate_up=linears.fused([f"{mlp}.gate_proj", f"{mlp}.up_proj"]),
        down=linears.one(f"{mlp}.down_proj"),
        norms=(
            linears.tensor(f"{prefix}.input_layernorm.weight"),
            linears.tensor(f"{prefix}.post_attention_layernorm.weight"),
        ),
        head_norms=(
            linears.tensor(f"{attention}.q_norm.weight"),
            linears.tensor(f"{attention}.k_norm.weight"),
        )
        if has_head_norms
        else None,
    )


def _rotary(config: Any, device: torch.device) -> Rotary:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    embedding = LlamaRotaryEmbedding(config)
    scaling = float(embedding.attention_scaling)
    return Rotary(embedding.inv_freq.float().to(device), scaling)


def _transformers_config(source: WeightSource) -> Any:
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    plain = {k: v for k, v in source.config.items() if k != "quantization_config"}
    plain = PreTrainedConfig._decode_special_floats(plain)  # infinity is stored as a section
    try:
        config = CONFIG_MAPPING[plain["model_type"]].from_dict(plain)
    except KeyError as error:
        raise NoKernelError(
            f"'{source.name}' is of a model type that transformers does not know: "
            f"{plain.get('model_type')!r}"
        ) from error
    except Exception as error:  # the library checks what it is given, each field in its own way
        raise CheckpointError(
            f"'{source.name}' has a config.json that transformers refuses: {error}"
        ) from error
    config._attn_implementation = None  # see `models.load_config`
    return config


def _weight_bytes(model: nn.Module) -> int:
    """Return the bytes of tensors and packed weights; a table shared with the head counts once."""
    seen: set[int] = set()

    def held(module: nn.Module) -> int:
        if hasattr(module, "kernel"):
            shared = [buffer for buffer in module.buffers() if buffer.data_ptr() in seen]
            return int(module.weight_bytes) - sum(buffer.nbytes for buffer in shared)  # type: ignore[arg-type]
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        new = {tensor.data_ptr(): tensor.nbytes for tensor in own if tensor.data_ptr() not in seen}
        seen.update(new)
        return sum(new.values()) + sum(held(child) for child in module.children())

    return held(model)
