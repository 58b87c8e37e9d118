"""Run a decoder's passes on a CPU as lists of C calls, without torch between the products.

The Linears are the decoder's own. One that is an operation itself joins the list; any other is
called from Python between two lists. It gets its input in the decoder's compute type; all else is
float32 in memory, for every arm alike.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantdraft.engines.kernels.choice import LinearByRows
from quantdraft.engines.kernels.few_rows import FewRowsLinear
from quantdraft.engines.kernels.operations import (
    MAX_HEAD_DIM,
    AddNorm,
    Attention,
    Embedding,
    Gate,
    Given,
    Operation,
    PickedNorm,
    Program,
    Step,
    operations_fault,
    padded_dim,
)
from quantdraft.engines.native.decoder import Decoder, KVCache, Layer, RMSNorm
from quantdraft.engines.native.linears import JoinedLinears

KEPT_BYTES = 64 * 2**20  # of all passes together whose lists and memory are kept

Key = tuple[
    int, int, int | None, int
]  # batch, new tokens, how many need logits (None: all), threads


def fused_fault(model: Decoder) -> str | None:
    """Return why a decoder cannot run fused on this machine, or None where it can."""
    if model.embedding.device.type != "cpu":
        return "it is for CPUs"
    if model.shape.head_dim > MAX_HEAD_DIM:
        return f"a head of {model.shape.head_dim} is larger than {MAX_HEAD_DIM}"
    return operations_fault()


class FusedDecoder:
    """A decoder on a cache of its own, whose heads are padded to whole vectors."""

    def __init__(
        self,
        model: Decoder,
        batch_size: int,
        num_slots: int,
        dtype: torch.dtype,
        is_shared: bool = False,
    ) -> None:
        """dtype: what the Linears compute in and the cache holds, float32 or bfloat16.

        is_shared: of the cache, see `KVCache`
        """
        self.model, self.dtype = model, dtype
        padded = replace(model.shape, head_dim=padded_dim(model.shape.head_dim))
        rotary = model.rotary(num_slots, torch.float32)
        self.cache = KVCache(padded, batch_size, num_slots, rotary, dtype, is_shared)
        self._passes: dict[Key, _Pass] = {}

    def forward(self, token_ids: Tensor, positions: Tensor, at: Tensor | None = None) -> Tensor:
        """Return logits, (batch, n, vocab), as `Decoder.forward` does; a token sees up to its slot.

        IndexError where a token id or a position does not exist.
        """
        batch_size, num_tokens = token_ids.shape
        picked = None if at is None else at.shape[1]
        key = batch_size, num_tokens, picked, torch.get_num_threads()
        found = self._passes.get(key) or self._make_pass(key)
        return found.run(token_ids, positions, at)

    def on(self, cache: KVCache) -> FusedDecoder:
        """Return this decoder on another cache of its own kind; it keeps no passes of this one."""
        other = copy.copy(self)
        other.cache, other._passes = cache, {}
        return other

    def _make_pass(self, key: Key) -> _Pass:
        created = _Pass(self, *key)
        if created.num_bytes + sum(each.num_bytes for each in self._passes.values()) > KEPT_BYTES:
            self._passes.clear()
        if created.num_bytes <= KEPT_BYTES:
            self._passes[key] = created
        return created


class _Pass:
    """The list of operations for m new tokens of every row, and their memory."""

    def __init__(
        self,
        owner: FusedDecoder,
        batch_size: int,
        num_tokens: int,
        num_picked: int | None,
        num_threads: int,
    ) -> None:
        shape, rows = owner.model.shape, batch_size * num_tokens
        self.model, self.dtype, self.cache = owner.model, owner.dtype, owner.cache
        self.batch_size, self.num_tokens, self.num_threads = batch_size, num_tokens, num_threads
        self.rows, self.num_picked = rows, num_picked
        self.given, self.scratch = Given(), dict[int, Tensor]()
        self.token_ids = torch.empty(0)
        self.x, self.normed, self.added = torch.empty(3, rows, shape.hidden_size)
        num_heads = shape.num_heads + 2 * shape.num_kv_heads
        self.projected = torch.empty(rows, num_heads * shape.head_dim)
        self.attended = torch.empty(rows, shape.num_heads * shape.head_dim)
        self.gate_up = torch.empty(rows, 2 * shape.intermediate_size)
        self.active = torch.empty(rows, shape.intermediate_size)
        self.last = torch.empty(batch_size * (num_picked or num_tokens), shape.hidden_size)
        self.head = self._product(self.model.head, self.last, torch.empty(0, shape.vocab_size))
        self.program = Program(self._steps())

    @property
    def num_bytes(self) -> int:
        """Bytes of the activations."""
        parts = (self.x, self.normed, self.added, self.projected, self.attended, self.gate_up)
        return sum(part.nbytes for part in (*parts, self.active, self.last))

    def run(self, token_ids: Tensor, positions: Tensor, at: Tensor | None) -> Tensor:
        """Return logits, (batch, n, vocab)."""
        held = token_ids.contiguous(), positions.contiguous()
        self.token_ids = held[0]
        self.given.ids, self.given.positions = held[0].data_ptr(), held[1].data_ptr()
        if at is not None:
            at = at.contiguous()
            self.given.at = at.data_ptr()
        size = self.model.shape.vocab_size
        if isinstance(self.head, Operation):
            logits = torch.empty(self.batch_size, len(self.last) // self.batch_size, size)
            self.head.out = logits.data_ptr()
            self.program.run()
            return logits
        self.program.run()
        found: Tensor = self.model.head(self.last.to(self.dtype))
        return found.view(self.batch_size, -1, size)

    def _steps(self) -> list[Step]:
        steps = [self._embedding()]
        for index, layer in enumerate(self.model.layers):
            assert isinstance(layer, Layer)
            steps += self._layer(layer, self.cache.entries[index], is_first=index == 0)
        picking = AddNorm if self.num_picked is None else PickedNorm
        steps.append(self._norm(self.model.norm, self.last, self.added, picking))
        return [*steps, self.head] if isinstance(self.head, Operation) else steps

    def _layer(self, layer: Layer, entries: Tensor, is_first: bool) -> list[Step]:
        rows, size = self.active.shape
        before = None if is_first else self.added
        return [
            self._norm(layer.attention_norm, self.normed, before),
            *self._products(layer.qkv, self.normed, self.projected),
            self._attention(layer, entries),
            *self._products(layer.out, self.attended, self.added),
            self._norm(layer.mlp_norm, self.normed, self.added),
            *self._products(layer.gate_up, self.normed, self.gate_up),
            Gate(
                gate_up=self.gate_up, out=self.active, rows=rows, size=size,
                threads=self.num_threads,
            ),
            *self._products(layer.down, self.active, self.added),
        ]  # fmt: skip

    def _embedding(self) -> Step:
        table = self.model.embedding
        if table.dtype not in (torch.float32, torch.bfloat16) or not table.is_contiguous():
            return lambda: self.x.copy_(F.embedding(self.token_ids.view(-1), table))
        return Embedding(
            given=self.given, table=table, out=self.x, rows=self.rows, size=table.shape[1],
            vocab=len(table), is_bf16=table.dtype == torch.bfloat16,
        )  # fmt: skip

    def _norm(
        self, norm: RMSNorm, out: Tensor, added: Tensor | None, kind: type[AddNorm] = AddNorm
    ) -> AddNorm:
        return kind(
            given=self.given, x=self.x, added=added, weight=norm.weight.float(), out=out,
            rows=self.rows, size=self.x.shape[1], threads=self.num_threads,
            tokens=self.num_tokens, picked=self.num_picked or self.num_tokens, eps=norm.eps,
        )  # fmt: skip

    def _attention(self, layer: Layer, entries: Tensor) -> Attention:
        shape, cache, norms = self.model.shape, self.cache, (layer.query_norm, layer.key_norm)
        query, key = (None if norm is None else norm.weight.float() for norm in norms)
        created = Attention(
            given=self.given, projected=self.projected, cos=cache.cos, sin=cache.sin,
            query_norm=query, key_norm=key, entries=entries, out=self.attended,
            batch=self.batch_size, tokens=self.num_tokens, heads=shape.num_heads,
            kv_heads=shape.num_kv_heads, dim=shape.head_dim, padded=entries.shape[-1],
            slots=cache.num_slots, is_bf16=entries.dtype == torch.bfloat16,
            threads=self.num_threads, eps=shape.norm_eps,
        )  # fmt: skip
        created.hold(scratch=self._scratch(4 * created.scratch_size))
        return created

    def _products(self, linear: nn.Module, x: Tensor, out: Tensor) -> list[Step]:
        """Return a Linear's product, or its parts' products into their own columns of out."""
        if not isinstance(linear, JoinedLinears):
            return [self._product(linear, x, out)]
        columns = torch.split(out, linear.widths, dim=1)
        return [
            self._product(part, x, own) for part, own in zip(linear.parts, columns, strict=True)
        ]

    def _product(self, linear: nn.Module, x: Tensor, out: Tensor) -> Step:
        """Return the step that multiplies x into out: an operation where the kernel has one."""
        if isinstance(linear, LinearByRows):
            linear = linear.part_for(len(x))
        if isinstance(linear, FewRowsLinear):
            return linear.as_operation(x, out, self._scratch)
        forward, dtype = linear.forward, self.dtype
        return lambda: out.copy_(forward(x.to(dtype)))

    def _scratch(self, num_bytes: int) -> Tensor:
        """Return memory that operations use one after the other."""
        if num_bytes not in self.scratch:
            self.scratch[num_bytes] = torch.empty(num_bytes, dtype=torch.uint8)
        return self.scratch[num_bytes]
