"""The most memory that was used, what models need of it, and whether a device has it left."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence

import torch

from quantdraft.checkpoints.tensors.free_memory import available_bytes
from quantdraft.engines.kernels.choice import tried_rows
from quantdraft.engines.native.model import NativeModel
from quantdraft.engines.native.weight_sources import WeightSource

# Memory that is left to everything else: activations of kernels, the allocator's own loss.
MEMORY_SHARE = 0.9


def reset_peak(device: torch.device) -> int:
    """Start to count the peak anew, and return the bytes that are allocated already.

    A process's own resident set cannot be counted anew: 0 on a CPU.
    """
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_bytes(device: torch.device) -> int:
    """Return the most bytes allocated since `reset_peak`; on a CPU the largest resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kB everywhere but there


def weight_bytes(
    source: WeightSource, dtype: torch.dtype, device: torch.device, rows: Sequence[int] = (1,)
) -> int:
    """Return about what the weights take in memory: what a step reads, and the embedding table.

    A dense weight on a CPU may be held twice: for one row as it is stored, for many in float32. So
    may a quantized one on a GPU, where few and many rows have each a kernel and a packing.

    rows: the numbers of rows that kernels are chosen for
    """
    config = source.config.get("text_config") or source.config
    table = int(config.get("vocab_size", 0)) * int(config.get("hidden_size", 0)) * dtype.itemsize
    stored = source.ledger.weight_bytes
    if source.formats:
        num_packings = 2 if device.type == "cuda" and len({*map(tried_rows, rows)}) > 1 else 1
        return table + num_packings * stored
    second_packing = 2 * stored if device.type == "cpu" else 0
    return table + stored * dtype.itemsize // 2 + second_packing


def point_bytes(
    native: NativeModel,
    source: WeightSource,
    batch_size: int,
    context_length: int,
    num_new_tokens: int,
    has_cache: bool = False,
) -> int:
    """Return what a step needs besides weights: keys, values, logits and activations, in bytes.

    has_cache: another model of its shape is open at this point, whose cache it shares
    """
    slots = context_length + num_new_tokens
    cache = native.step_bytes(batch_size, slots) - native.step_bytes(batch_size, 0)
    config = source.config.get("text_config") or source.config
    columns = 2 * int(config["vocab_size"]) + 4 * int(config.get("intermediate_size", 0))
    activations = batch_size * num_new_tokens * columns * native.dtype.itemsize
    return activations if has_cache else cache + activations


def memory_shortage(num_bytes: int, device: torch.device) -> str | None:
    """Return why that many bytes cannot be had; None where they can, or where nobody knows."""
    available = available_bytes(device)
    if available is None or num_bytes <= MEMORY_SHARE * available:
        return None
    return f"it needs about {num_bytes / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free"
