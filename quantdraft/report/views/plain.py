"""A document as plain JSON: everything the page shows, each block with its kind."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any


def plain(value: Any) -> Any:
    """Return dataclasses as objects with a `kind`, sets as sorted lists."""
    if is_dataclass(value) and not isinstance(value, type):
        inner = {each.name: plain(getattr(value, each.name)) for each in fields(value)}
        return {"kind": type(value).__name__.lower(), **inner}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value
