"""Make hostile variants of valid files, seeded: a number finds the same input again.

Bytes are flipped, cut, doubled and spliced; JSON keeps its form while its values become what no
writer would write.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

ODD_TEXTS = (
    "", " ", "\0", "\n", "\x1b[31m", "\u202egnp", "\ud800", "\udfff", "\ufeff", "é" * 300,
    "x" * 5000, "../../etc/passwd", "/etc/passwd", "..", ".", "re:(", "re:[", "re:*", "{{7*7}}",
    "<script>", "${HOME}", "$(id)", "`id`", "'; --", "%s%n", "null", "NaN", "1e999", "true", "auto",
    "Linear", "block", "group", "tensor_group", "float", "int", "gptq", "bitsandbytes", "awq",
    "F8_E4M3",
)  # fmt: skip
ODD_NUMBERS = (
    0, 1, -1, 2, 7, 1.5, -0.0, 1e308, 5e-324, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400,
    float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
ODD_BYTES = (
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\xaf", b"\xef\xbb\xbf", b"[" * 3000,
    b'{"a":' * 500,
    b"9" * 5000, b"1e999", b"-", b"NaN", b"\\ud800", b"\r", b"\n\n", b"\xe2\x80\xa8", b'"', b",",
    b"*a", b"&a ", b"&a [*a]", b"<<: *a", b"!!python/object/apply:os.system ['true']",
    b"!!binary x",
    b"!!timestamp x", b"!!int ''", b"? ", b"---\n", b"\t", b"%YAML 9.9\n", b": ", b"- " * 200, b"{",
    b"1:60:60", b"0o9", b"2024-13-45",
)  # fmt: skip
_NUMBER = re.compile(rb"-?\d+(\.\d+)?")


def mutated(seed: bytes, seeds: Sequence[bytes], chance: random.Random, is_json: bool) -> bytes:
    """One variant: of the values where the seed is JSON, of the bytes otherwise and sometimes."""
    if is_json and chance.random() < 0.75:
        return _mutated_json(seed, seeds, chance)
    return _mutated_bytes(seed, seeds, chance)


def mutated_lines(seed: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """One variant of JSON lines: a line or two of it, their order and their number."""
    lines = seed.splitlines()
    for _ in range(chance.randint(1, 2)):
        at = chance.randrange(len(lines)) if lines else 0
        kind = chance.randrange(8)
        if kind == 0:
            lines.insert(at, b"")
        elif kind == 1 and lines:
            lines.insert(chance.randrange(len(lines) + 1), lines[at])
        elif kind == 2 and lines:
            del lines[at]
        elif lines:
            lines[at] = mutated(lines[at], lines, chance, is_json=True)
    return chance.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r")).join(lines)


def mutated_header(seed: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """One variant of a safetensors file: its header rewritten at its right length, or its bytes."""
    if chance.random() < 0.2:
        return _mutated_bytes(seed, seeds, chance)
    size = int.from_bytes(seed[:8], "little")
    header = mutated(seed[8 : 8 + size], [seed[8 : 8 + size]], chance, is_json=True)
    told = len(header) if chance.random() < 0.95 else chance.choice((0, 2**63, len(header) + 1))
    return told.to_bytes(8, "little") + header + seed[8 + size :]


def _mutated_json(seed: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    try:
        holder = [json.loads(seed)]
    except (ValueError, RecursionError):  # a variant of a variant
        return _mutated_bytes(seed, seeds, chance)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        chance.choice(_CHANGES)(holder, chance)
    return json.dumps(holder[0], ensure_ascii=chance.random() < 0.8).encode(
        "utf-8", "surrogatepass"
    )


def _place(holder: list[Any], chance: random.Random) -> tuple[Any, Any]:
    """A container and a key of it, at any depth."""
    container, key = holder, 0
    while True:
        value = container[key]
        if not isinstance(value, (dict, list)) or not value or chance.random() < 0.25:
            return container, key
        container = value
        key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))


def _odd_value(chance: random.Random) -> Any:
    kind = chance.randrange(6)
    if kind == 0:
        return chance.choice(ODD_TEXTS)
    if kind == 1:
        return chance.choice(ODD_NUMBERS)
    if kind == 2:
        return chance.choice((None, True, False))
    if kind == 3:
        return chance.choice(([], {}, [[]], [None], {"": {}}, [0], [""], {"a": "b"}, [[0, 1]]))
    if kind == 4:
        return _nested(chance.choice((5, 70, 300)))
    return chance.randint(-10, 300)


def _nested(depth: int) -> Any:
    value: Any = 0
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def _replace(holder: list[Any], chance: random.Random) -> None:
    container, key = _place(holder, chance)
    container[key] = _odd_value(chance)


def _retype(holder: list[Any], chance: random.Random) -> None:
    """The same content in another type: "256" for 256, [x] for x."""
    container, key = _place(holder, chance)
    value = container[key]
    if isinstance(value, (dict, list)):
        container[key] = chance.choice((list(value), str(value)[:200], len(value), [value]))
    else:
        container[key] = chance.choice((str(value), [value], {"value": value}, not value))


def _remove(holder: list[Any], chance: random.Random) -> None:
    container, key = _place(holder, chance)
    if container is not holder:
        del container[key]


def _rename(holder: list[Any], chance: random.Random) -> None:
    container, key = _place(holder, chance)
    if isinstance(container, dict):
        container[chance.choice(ODD_TEXTS)] = container.pop(key)


def _swap(holder: list[Any], chance: random.Random) -> None:
    (one, key), (other, at) = _place(holder, chance), _place(holder, chance)
    if one is not holder and other is not holder:
        first, second = json.dumps(one[key]), json.dumps(other[at])
        one[key], other[at] = json.loads(second), json.loads(first)


def _nudge(holder: list[Any], chance: random.Random) -> None:
    container, key = _place(holder, chance)
    if type(container[key]) in {int, float}:
        container[key] = chance.choice(
            (container[key] + 1, -container[key], container[key] * 2**40)
        )


_CHANGES: tuple[Callable[[list[Any], random.Random], None], ...] = (
    _replace, _replace, _replace, _retype, _remove, _rename, _swap, _nudge,
)  # fmt: skip


def _mutated_bytes(seed: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    raw = bytearray(seed)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at, kind = chance.randrange(len(raw) + 1), chance.randrange(8)
        if kind == 0 and raw:
            raw[at % len(raw)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del raw[at:]
        elif kind == 2:
            del raw[at : at + chance.randrange(20)]
        elif kind == 3:
            raw[at:at] = raw[max(0, at - chance.randrange(60)) : at]
        elif kind == 4:
            other = chance.choice(list(seeds))
            raw[at:] = other[chance.randrange(len(other) + 1) :]
        elif kind == 5:
            raw[at:at] = chance.choice(ODD_BYTES)
        elif kind == 6:
            numbers = list(_NUMBER.finditer(raw))
            if numbers:
                start, end = chance.choice(numbers).span()
                raw[start:end] = str(chance.choice(ODD_NUMBERS)).encode()
        else:
            raw[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 6)))
    return bytes(raw[: 1 << 20])
