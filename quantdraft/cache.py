"""A KV cache that can step back: speculation feeds tokens that it may have to forget."""

from __future__ import annotations

from typing import Any


def rewindable_cache(model: Any) -> Any:
    """An empty cache for `model` whose newest tokens can be removed, sliding windows included."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    return cache


def rewind(cache: Any, num_tokens: int) -> None:
    """Forget the newest `num_tokens` tokens. (transformers removes where the count is negative.)"""
    if num_tokens > 0:
        cache.crop(-num_tokens)
