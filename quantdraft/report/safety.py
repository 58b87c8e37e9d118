"""Text that users wrote, made harmless to show: no control characters, no endless lines.

Every view calls this first; escaping for HTML or Markdown is the view's own and comes after.
"""

from __future__ import annotations

import re
from typing import Any

MAX_LENGTH = 2000
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# They turn the direction of what follows, and would reach beyond the text they stand in.
_DIRECTIONS = re.compile(r"[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")


def shown_text(text: str, max_length: int = MAX_LENGTH) -> str:
    """Return text with control characters replaced by visible ones, and cut if it is long."""
    if len(text) > max_length:
        text = f"{text[:max_length]}… ({len(text) - max_length:,} characters more)"
    text = _CONTROLS.sub(_visible, text)
    return _DIRECTIONS.sub(lambda found: f"<U+{ord(found.group()):04X}>", text)


def shown_values(value: Any, max_length: int = 120) -> Any:
    """Return a specification with every text in it made harmless."""
    if isinstance(value, str):
        return shown_text(value, max_length)
    if isinstance(value, dict):
        return {key: shown_values(inner, max_length) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shown_values(inner, max_length) for inner in value]
    return value


def _visible(found: re.Match[str]) -> str:
    code = ord(found.group())
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"
