"""A decoder of the Llama family on a static KV cache: Llama, Mistral, Qwen2, Qwen3.

It is made for small batches: fused projections, no Python between operations that a graph or
a compiler could not see, and a cache that every row fills at its own speed. Positions alone say
what is valid: to step back is to feed smaller positions. Sliding windows, experts and rotary
embeddings that change with the length are left to the transformers library's own modules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The architectures whose layers are these: RMSNorm, rotary embeddings, gated MLP.
ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
ROTARY_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The values of a config that the layers need."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    norm_eps: float

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """Read the shape from a transformers config."""
        return cls(
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None)
            or config.hidden_size // config.num_attention_heads,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            vocab_size=config.vocab_size,
            norm_eps=config.rms_norm_eps,
        )


def unsupported(config: Any) -> str | None:
    """Return why this decoder cannot run a config, or None where it can."""
    architecture = (config.architectures or ["unknown"])[0]
    if architecture not in ARCHITECTURES:
        return f"{architecture} is not of the Llama family"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return "some layers have a sliding window"
    if architecture == "MistralForCausalLM" and getattr(config, "sliding_window", None):
        return "its attention has a sliding window"
    if config.rope_parameters["rope_type"] not in ROTARY_TYPES:
        return f"its rotary embedding is of type {config.rope_parameters['rope_type']!r}"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act!r}, not silu"
    return None


class KVCache:
    """Keys and values of every layer; never grows.

    entries:  (layers, batch, 2 * kv heads, slots, head_dim); the keys' heads come first, so that
              one write stores both
    cos, sin: (slots, head_dim), the rotary embedding of each slot's position
    """

    def __init__(
        self,
        shape: DecoderShape,
        batch_size: int,
        num_slots: int,
        rotary: tuple[Tensor, Tensor],
        dtype: torch.dtype | None = None,
        is_shared: bool = False,
    ) -> None:
        """dtype: of the entries; None: that of `rotary`.

        is_shared: one memory for the entries of all such caches of one shape, type and device
        """
        self.cos, self.sin = rotary
        size = (shape.num_layers, batch_size, 2 * shape.num_kv_heads, num_slots, shape.head_dim)
        kind = size, dtype or self.cos.dtype, self.cos.device
        known = _shared.get(kind) if is_shared else None
        self.found_bytes = 0 if known is None else known.nbytes  # that another cache allocated
        self.entries = torch.zeros(size, dtype=kind[1], device=kind[2]) if known is None else known
        if is_shared:
            _shared[kind] = self.entries
        self.rows = torch.arange(batch_size, device=self.cos.device)[:, None, None]
        self.heads = torch.arange(size[2], device=self.cos.device)
        self.batch_size, self.num_slots = batch_size, num_slots

    def row(self, index: int) -> KVCache:
        """Return one row of this cache, on the same memory."""
        alone = copy.copy(self)
        alone.entries, alone.batch_size = self.entries[:, index : index + 1], 1
        return alone

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots."""
        return self.entries.nbytes


# Entries of shared caches, by size, type and device, while one of the caches lives.
_shared: WeakValueDictionary[tuple[Any, ...], Tensor] = WeakValueDictionary()


class LayerInputs(NamedTuple):
    """The inputs that all layers share in one pass over m new tokens per row.

    cos, sin:  (batch, m, 1, head_dim), the first half of every sine negative, so that a rotation
               is x cos + swapped(x) sin
    mask:      (batch, 1, group * m, num_live), 0 or -inf; None: every live slot is seen
    positions: (batch, m) int64
    num_live:  slots that attention reads
    places:    where keys and values are written: row (batch, 1, 1), head (2 * kv heads,) and slot
               (batch, m, 1)
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    positions: Tensor
    num_live: int
    places: tuple[Tensor, Tensor, Tensor]


class Layer(nn.Module):
    """One block: attention, then MLP, each behind an RMSNorm and around a residual."""

    def __init__(
        self,
        shape: DecoderShape,
        *,
        qkv: nn.Module,
        out: nn.Module,
        gate_up: nn.Module,
        down: nn.Module,
        norms: tuple[Tensor, Tensor],
        head_norms: tuple[Tensor, Tensor] | None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.qkv, self.out, self.gate_up, self.down = qkv, out, gate_up, down
        self.attention_norm = RMSNorm(norms[0], shape.norm_eps)
        self.mlp_norm = RMSNorm(norms[1], shape.norm_eps)
        self.query_norm = RMSNorm(head_norms[0], shape.norm_eps) if head_norms else None
        self.key_norm = RMSNorm(head_norms[1], shape.norm_eps) if head_norms else None

    def forward(
        self, x: Tensor, normed: Tensor, entries: Tensor, shared: LayerInputs, next_norm: RMSNorm
    ) -> tuple[Tensor, Tensor]:
        """Run one block over m new tokens per row; return x behind it, and x normed by `next_norm`.

        The norm of what comes next is part of the block, so that a compiler makes one kernel of it
        and the sum before it.

        x, normed: (batch, m, hidden), before and behind the block's first norm
        entries:   (batch, 2 * kv heads, slots, head_dim), this layer's cache, written in place
        """
        x = x + self._attend(normed, entries, shared)
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        x = x + self.down(F.silu(gate) * up)
        return x, next_norm(x)

    def _attend(self, x: Tensor, entries: Tensor, shared: LayerInputs) -> Tensor:
        shape, (batch, m, _) = self.shape, x.shape
        num_kv, dim = shape.num_kv_heads, shape.head_dim
        heads = self.qkv(x).view(batch, m, -1, dim)
        turn = self._turn if torch.compiler.is_compiling() else self._turn_in_place
        query, new = turn(heads, shared)
        _write(entries, new, shared)
        # The heads that share a key become rows of one product, so a key is read once.
        grouped = query.view(batch, m, num_kv, -1, dim).permute(0, 2, 3, 1, 4)
        out = F.scaled_dot_product_attention(
            grouped.reshape(batch, num_kv, -1, dim),
            entries[:, :num_kv, : shared.num_live],
            entries[:, num_kv:, : shared.num_live],
            attn_mask=shared.mask,
        )
        out = out.view(batch, num_kv, -1, m, dim).permute(0, 3, 1, 2, 4)
        attended: Tensor = self.out(out.reshape(batch, m, -1))
        return attended

    def _turn_in_place(self, heads: Tensor, shared: LayerInputs) -> tuple[Tensor, Tensor]:
        """Return normed and turned queries, and what goes into the cache: keys, then values.

        Queries and keys at once and in place: fewer operations, each of which costs its call.

        heads: (batch, m, heads + 2 * kv heads, head_dim)
        """
        num_heads, num_kv = self.shape.num_heads, self.shape.num_kv_heads
        if self.query_norm is not None and self.key_norm is not None:
            query, key, value = torch.split(heads, [num_heads, num_kv, num_kv], dim=2)
            heads = torch.cat((self.query_norm(query), self.key_norm(key), value), dim=2)
        turning = heads[:, :, : num_heads + num_kv]
        swapped = _swap_halves(turning).mul_(shared.sin)
        turning.mul_(shared.cos).add_(swapped)
        return heads[:, :, :num_heads], heads[:, :, num_heads:]

    def _turn(self, heads: Tensor, shared: LayerInputs) -> tuple[Tensor, Tensor]:
        """Return the same for a compiler, which makes one kernel of each of the two.

        Values are normed and turned like keys, and put back: that costs a kernel no memory.
        """
        query, new = heads[:, :, : self.shape.num_heads], heads[:, :, self.shape.num_heads :]
        key = new
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(new)
        is_key = torch.arange(new.shape[2], device=new.device) < self.shape.num_kv_heads
        return _turned(query, shared), torch.where(is_key[:, None], _turned(key, shared), new)


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension, summed in float32.

    x / sqrt(mean(x^2) + eps) is sqrt(n) x / hypot(|x|, sqrt(n eps)): on a CPU these are four
    operations where torch's own norm has eight, and a small model's step is made of such calls.
    """

    weight: Tensor
    scaled: Tensor
    floor: Tensor

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.eps = eps
        size = weight.numel()
        self.register_buffer("weight", weight)
        self.root = size**0.5
        self.register_buffer("scaled", weight * self.root)
        floor = torch.full((), (size * eps) ** 0.5, dtype=torch.float32, device=weight.device)
        self.register_buffer("floor", floor)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (..., n) over its last dimension."""
        wide = x.float()
        if x.device.type != "cpu":
            normed = F.rms_norm(wide, self.weight.shape, None, self.eps)
            return self.weight * normed.to(x.dtype)
        normed = wide / torch.hypot(
            torch.linalg.vector_norm(wide, dim=-1, keepdim=True), self.floor
        )
        if x.dtype == torch.float32:
            return normed.mul_(self.scaled)
        return normed.mul_(self.root).to(x.dtype) * self.weight


class Rotary(nn.Module):
    """Cosines and sines of positions, computed in float32 as the transformers library does."""

    inv_freq: Tensor

    def __init__(self, inv_freq: Tensor, scaling: float) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inv_freq)
        self.scaling = scaling

    def forward(self, num_slots: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and signed sines of the first positions, (slots, head_dim) each."""
        positions = torch.arange(num_slots, device=self.inv_freq.device).float()
        angles = positions[:, None] * self.inv_freq
        cos, sin = angles.cos() * self.scaling, angles.sin() * self.scaling
        return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


class Parts(NamedTuple):
    """A decoder's functions, or what stands for them.

    begin:  as `Decoder.begin`
    layers: each as `Layer.forward`
    """

    begin: Callable[..., tuple[Tensor, Tensor, LayerInputs]]
    layers: Sequence[Callable[..., tuple[Tensor, Tensor]]]


class Decoder(nn.Module):
    """Embedding, layers, norm and head. The cache is passed in, so one model serves many."""

    embedding: Tensor

    def __init__(
        self,
        shape: DecoderShape,
        embedding: Tensor,
        layers: list[Layer],
        norm: Tensor,
        head: nn.Module,
        rotary: Rotary,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("embedding", embedding)
        self.rotary = rotary
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(norm, shape.norm_eps)
        self.head = head

    def forward(
        self,
        cache: KVCache,
        token_ids: Tensor,
        positions: Tensor,
        num_live: int,
        at: Tensor | None = None,
        sees_all: bool = False,
        parts: Parts | None = None,
    ) -> Tensor:
        """Return logits of the tokens at `at`; keys and values of all new tokens go into the cache.

        token_ids: (batch, m) int64
        positions: (batch, m) int64, each token's place in its row
        num_live:  slots that attention reads, above every position
        at:        (batch, n) int64, which of the m tokens need logits; None: all
        sees_all:  every new token sees every live slot (one token a row, rows of one length)
        parts:     this model's parts in another form (compiled); None: as they are
        returns:   (batch, n, vocab) in the model's float type
        """
        begin, layers = parts or Parts(self.begin, tuple(self.layers))
        x, normed, shared = begin(cache, token_ids, positions, num_live, sees_all)
        for layer, entries, next_norm in zip(layers, cache.entries, self.next_norms, strict=True):
            x, normed = layer(x, normed, entries, shared, next_norm)
        if at is not None:
            normed = normed.gather(1, at[:, :, None].expand(-1, -1, normed.shape[-1]))
        logits: Tensor = self.head(normed)
        return logits

    def begin(
        self, cache: KVCache, token_ids: Tensor, positions: Tensor, num_live: int, sees_all: bool
    ) -> tuple[Tensor, Tensor, LayerInputs]:
        """Return the embeddings, (batch, m, hidden), normed too, and what all layers share."""
        x = F.embedding(token_ids, self.embedding).to(cache.entries.dtype)
        mask = None if sees_all else self._mask(positions, num_live, x.dtype)
        cos, sin = cache.cos[positions][:, :, None], cache.sin[positions][:, :, None]
        places = cache.rows, cache.heads, positions[:, :, None]
        shared = LayerInputs(cos, sin, mask, positions, num_live, places)
        return x, self.first_norm(x), shared

    @property
    def first_norm(self) -> RMSNorm:
        """The norm before the first layer."""
        layer = self.layers[0]
        assert isinstance(layer, Layer)
        return layer.attention_norm

    @property
    def next_norms(self) -> list[RMSNorm]:
        """The norm behind each layer: the next layer's first, or the model's last."""
        firsts = [layer.attention_norm for layer in self.layers if isinstance(layer, Layer)]
        return [*firsts[1:], self.norm]

    def first_layer(self) -> Decoder:
        """Return this model with its first layer alone, on the same weights, for short trials."""
        short = copy.copy(self)
        short._modules = dict(self._modules)
        short.shape = replace(self.shape, num_layers=1)
        short.layers = nn.ModuleList([self.layers[0]])
        return short

    def _mask(self, positions: Tensor, num_live: int, dtype: torch.dtype) -> Tensor:
        """Return (batch, 1, group * m, num_live): a token sees its own slot and those before it."""
        slots = torch.arange(num_live, device=positions.device)
        is_hidden = slots > positions[:, :, None]
        mask = torch.zeros(is_hidden.shape, dtype=dtype, device=positions.device)
        group = self.shape.num_heads // self.shape.num_kv_heads
        return mask.masked_fill_(is_hidden, -torch.inf).repeat(1, group, 1)[:, None]


def _write(cache: Tensor, new: Tensor, shared: LayerInputs) -> None:
    """Write new (batch, m, heads, head_dim) into cache (batch, heads, slots, head_dim)."""
    if len(new) == 1:
        cache.index_copy_(2, shared.positions[0], new.transpose(1, 2))
    else:
        cache.index_put_(shared.places, new)


def _turned(x: Tensor, shared: LayerInputs) -> Tensor:
    """Rotate (batch, m, heads, head_dim); the swap of halves is an index that a kernel reads by."""
    swapped = torch.unflatten(x, -1, (2, -1)).flip(-2).flatten(-2)
    return x * shared.cos + swapped * shared.sin


def _swap_halves(x: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return torch.cat((high, low), dim=-1)
