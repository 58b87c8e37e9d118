"""Words that every part says in the same way."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`1 prompt`, `32 prompts`: a noun after its number, for nouns whose plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
