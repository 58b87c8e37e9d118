"""Run one step of a model at one operating point, as often as a timing needs."""

from __future__ import annotations

import torch
from torch import Tensor

from quantdraft.engines.native.model import NativeModel
from quantdraft.engines.native.session import Session
from quantdraft.record.choices import Mode

PREFILL_CHUNK = 512  # tokens a pass, so that a long context's activations stay small
# What the context's keys and values hold: time does not depend on it, but zeros that were never
# written share one page of memory and would be read from a cache.
FILLING = 0.01
MASK_MULTIPLE = 8  # slots; GPU kernels copy a mask of another width before they read it


class Stepper:
    """Steps of m new tokens in every row, on top of a context.

    The project's decoder gets a cache filled with a constant, one for all models of a shape:
    computing a long context for many rows would take longer than all the steps. transformers'
    modules compute random tokens.
    """

    def __init__(
        self,
        native: NativeModel,
        batch_size: int,
        context_length: int,
        max_new_tokens: int,
        mode: Mode = "eager",
        seed: int = 0,
    ) -> None:
        num_slots = _rounded(context_length + max_new_tokens)
        self.session = Session(native, batch_size, num_slots, mode, is_level=True)
        self.context_length = context_length
        generator = torch.Generator().manual_seed(seed)
        shape = (batch_size, num_slots)
        tokens = torch.randint(self.session.vocab_size, shape, generator=generator)
        self.tokens = tokens.to(self.session.device)
        self._inputs: dict[int, tuple[Tensor, Tensor]] = {}
        if self.session.cache is None:
            self._prefill()
        else:
            self.session.cache.entries.fill_(FILLING)

    @property
    def found_bytes(self) -> int:
        """Bytes of its cache that a step of the same shape had allocated before."""
        return 0 if self.session.cache is None else self.session.cache.found_bytes

    @torch.inference_mode()
    def step(self, num_tokens: int) -> None:
        """Run `num_tokens` new tokens of every row, with argmax, and step back to the context."""
        session = self.session
        # A lone token with nothing behind it needs no mask, also where the step is recorded.
        sees_all = num_tokens == 1
        longest = self.context_length + num_tokens
        num_live = longest if sees_all or session.device.type == "cpu" else _rounded(longest)

        def run(token_ids: Tensor, positions: Tensor) -> Tensor:
            return session.forward(token_ids, positions, num_live, None, sees_all).argmax(-1)

        session.call(("step", num_tokens), run, *self._new(num_tokens))

    def _new(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return the tokens behind the context and their positions, (batch, num_tokens) each."""
        if num_tokens not in self._inputs:
            start, end = self.context_length, self.context_length + num_tokens
            positions = self._positions(start, end).contiguous()
            self._inputs[num_tokens] = self.tokens[:, start:end].contiguous(), positions
        return self._inputs[num_tokens]

    @torch.inference_mode()
    def _prefill(self) -> None:
        for start in range(0, self.context_length, PREFILL_CHUNK):
            end = min(start + PREFILL_CHUNK, self.context_length)
            last = torch.full((len(self.tokens), 1), end - start - 1, device=self.tokens.device)
            self.session.forward(
                self.tokens[:, start:end],
                self._positions(start, end),
                self.session.num_live(end),
                last,
            )

    def _positions(self, start: int, end: int) -> Tensor:
        positions = torch.arange(start, end, device=self.tokens.device)
        return positions.expand(len(self.tokens), -1)


def _rounded(num_slots: int) -> int:
    """Return the slots that attention reads under a mask, whose rows begin at whole vectors."""
    return -(-num_slots // MASK_MULTIPLE) * MASK_MULTIPLE
