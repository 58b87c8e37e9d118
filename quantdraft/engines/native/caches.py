"""Caches of transformers' models that step back: speculation takes tokens back that it tried.

Keys and values of the newest tokens are cut off. A recurrent state (Mamba, linear attention,
short convolutions) holds all tokens in one: it is copied before tokens are read, and put back.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantdraft.record.terms import MAX_K

# Models with a recurrent state that read several tokens on top of it right; the others do so only
# token by token: transformers' scan of Mamba 1 starts anew.
READ_ON = {
    "bamba",
    "falcon_h1",
    "granitemoehybrid",
    "lfm2",
    "lfm2_moe",
    "mamba2",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
    "zamba2",
}
KEYS = "past_key_values"  # the usual name of a cache
# A round takes back at most its k tokens and one more.
NUM_SNAPSHOTS = MAX_K + 2


def cache_name(model: Any) -> str:
    """Return the name by which a model takes its cache, and by which its output holds it."""
    known = inspect.signature(model.forward).parameters
    return "cache_params" if "cache_params" in known else KEYS


def has_recurrent_state(model: Any) -> bool:
    """Return whether some layer keeps one state of all tokens instead of each token's keys."""
    return any(map(_is_recurrent, _empty_cache(model).layers))


def reads_on(model: Any) -> bool:
    """Return whether the model reads several tokens right on top of a filled cache."""
    kind = model.config.get_text_config().model_type
    return kind in READ_ON or not has_recurrent_state(model)


def read_tokens(model: Any, token_ids: Tensor, cache: Any, start: int, **options: Any) -> Any:
    """Return the model's output for tokens that stand at `start` and behind it, over a cache.

    Positions are told where the model takes them: of a hybrid's cache some models count none.
    """
    if "position_ids" in inspect.signature(model.forward).parameters:
        positions = torch.arange(start, start + token_ids.shape[1], device=token_ids.device)
        options["position_ids"] = positions.expand(len(token_ids), -1)
    options[cache_name(model)] = cache
    return model(input_ids=token_ids, use_cache=True, **options)


@dataclass(slots=True)
class _Snapshot:
    """The recurrent states of all layers after some number of tokens."""

    conv: list[dict[int, Tensor | None]]
    recurrent: list[dict[int, Tensor | None]]


class RewindableCache:
    """One model's cache: it grows with what is read, from any position that it has reached."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.length = 0
        self._cache = _empty_cache(model)
        self._is_recurrent = any(map(_is_recurrent, self._cache.layers))
        self._by_token = not reads_on(model)
        self._tokens: Tensor | None = None  # (rows, length) read so far, of a recurrent model
        self._snapshots: dict[int, _Snapshot] = {}  # by the number of tokens read before

    def read(self, token_ids: Tensor, start: int) -> Tensor:
        """Return logits, (rows, n, vocab), of n tokens that stand at `start` and behind it."""
        if not self._is_recurrent:
            self._crop(start)
            return self._pass(token_ids)
        # A finished row stands still, and may be asked from beyond its end: nothing reads that.
        start = min(start, self.length)
        kept = self._tokens[:, :start] if self._tokens is not None else token_ids[:, :0]
        begin = self._restore(start)
        self._tokens = torch.cat([kept, token_ids], dim=1)
        return self._read_all(self._tokens[:, begin:])[:, start - begin :]

    def _read_all(self, token_ids: Tensor) -> Tensor:
        """Read on from a state, which is kept; token by token where the model cannot otherwise."""
        step = 1 if self._by_token and self.length > 0 else token_ids.shape[1]
        logits = []
        for part in torch.split(token_ids, step, dim=1):
            self._snapshots[self.length] = self._copy_states()
            logits.append(self._pass(part))
        for length in sorted(self._snapshots)[:-NUM_SNAPSHOTS]:
            del self._snapshots[length]
        return torch.cat(logits, dim=1)

    def _pass(self, token_ids: Tensor) -> Tensor:
        output = read_tokens(self.model, token_ids, self._cache, self.length)
        self.length += token_ids.shape[1]
        logits: Tensor = output.logits
        return logits

    def _restore(self, start: int) -> int:
        """Step back to the last kept state before or at `start`; return its number of tokens."""
        if start == self.length:
            return start
        begin = max((length for length in self._snapshots if length <= start), default=0)
        states = self._snapshots.get(begin)
        self._snapshots = {n: each for n, each in self._snapshots.items() if n < begin}
        if begin == 0 or states is None:
            self._cache, self.length = _empty_cache(self.model), 0
            return 0
        self._crop(begin)
        for layer, conv, recurrent in zip(
            filter(_is_recurrent, self._cache.layers), states.conv, states.recurrent, strict=True
        ):
            layer.conv_states, layer.recurrent_states = conv, recurrent
        return begin

    def _copy_states(self) -> _Snapshot:
        layers = [layer for layer in self._cache.layers if _is_recurrent(layer)]
        return _Snapshot(
            [_copied(layer.conv_states) for layer in layers],
            [_copied(layer.recurrent_states) for layer in layers],
        )

    def _crop(self, length: int) -> None:
        """Cut the newest keys and values off."""
        from transformers.cache_utils import DynamicLayer

        num_taken_back = self.length - length
        if num_taken_back <= 0:
            return
        for layer in self._cache.layers:
            if not _is_recurrent(layer):
                layer.crop(-num_taken_back)  # transformers removes by a negative count
            elif isinstance(layer, DynamicLayer):
                DynamicLayer.crop(layer, -num_taken_back)
        self.length = length


def _copied(states: dict[int, Tensor | None]) -> dict[int, Tensor | None]:
    return {index: None if state is None else state.clone() for index, state in states.items()}


def _is_recurrent(layer: Any) -> bool:
    from transformers.cache_utils import LinearAttentionCacheLayerMixin

    return isinstance(layer, LinearAttentionCacheLayerMixin)


def _empty_cache(model: Any) -> Any:
    """Return an empty cache that keeps all keys, also those that have left a sliding window.

    The window's mask hides them: a cache that drops them can step back over its last update alone.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import (
        DynamicLayer,
        DynamicSlidingWindowLayer,
        LinearAttentionAndFullAttentionLayer,
        LinearAttentionAndSlidingWindowAttentionLayer,
    )

    cache = DynamicCache(config=model.config)
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            cache.layers[index] = DynamicLayer()
        elif type(layer) is LinearAttentionAndSlidingWindowAttentionLayer:
            cache.layers[index] = LinearAttentionAndFullAttentionLayer(layer.number_of_states)
    if not any(map(_is_recurrent, cache.layers)):
        cache.activate_past_recording()
    return cache
