"""A KV cache that can step back: speculation feeds tokens that it may have to forget."""

from __future__ import annotations

from typing import Any

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def rewindable_cache(model: Any) -> Any:
    """An empty cache for `model` whose newest tokens can be removed.

    Layers with a sliding window keep all keys, and their mask hides the old ones: a cache that
    drops what leaves the window can step back over its last update alone.
    """
    from transformers import DynamicCache

    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if kinds <= ATTENTION:
        return DynamicCache()
    cache = DynamicCache(config=model.config)  # states of linear attention, among others
    cache.activate_past_recording()
    return cache


def rewind(cache: Any, num_tokens: int) -> None:
    """Forget the newest `num_tokens` tokens. (transformers removes where the count is negative.)"""
    if num_tokens > 0:
        cache.crop(-num_tokens)
