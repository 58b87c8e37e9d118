"""Parts of a traffic: by conversation, the same ones every time."""

from __future__ import annotations

import random

import pytest

from quantdraft.traffic.parts import (
    Part,
    calibration_part,
    conversation_of,
    part_from,
    parts_of,
    place_of,
)
from quantdraft.traffic.responses import Response

NAMES = [f"conversation {number}" for number in range(100)]
PLACES = [place_of(name) for name in NAMES]


def sizes(parts: list[Part] | None, places: list[str]) -> list[int]:
    assert parts is not None
    return [sum(part.holds(place) for place in places) for part in parts]


@pytest.mark.parametrize(
    ("num_conversations", "shares", "expected"),
    [
        (100, (0.5, 0.5), [50, 50]),
        (100, (0.8, 0.1, 0.1), [80, 10, 10]),
        (3, (0.5, 0.5), [2, 1]),
        (2, (0.99, 0.01), [1, 1]),
        (3, (0.01, 0.01, 0.98), [1, 1, 1]),
    ],
)
def test_each_conversation_lies_in_one_part_and_no_part_is_empty(
    num_conversations, shares, expected
):
    places = PLACES[:num_conversations]
    parts = parts_of(places, shares, "file")
    assert sizes(parts, places) == expected
    assert [part.num_conversations for part in parts or ()] == expected


def test_too_few_conversations_cannot_be_parted():
    assert parts_of(PLACES[:1] * 9, (0.5, 0.5), "file") is None


def test_neither_order_nor_repeats_change_a_part():
    shuffled = random.Random(0).sample(PLACES * 3, 300)
    assert parts_of(shuffled, (0.3, 0.7), "file") == parts_of(PLACES, (0.3, 0.7), "file")


def test_responses_of_one_conversation_stay_together():
    responses = [
        Response(f"p{number}", (1,), (2, 3), conversation=f"c{number // 4}") for number in range(16)
    ]
    part = calibration_part(responses, 0.5, "file")
    assert part is not None
    held = {r.prompt_id for r in responses if part.holds(place_of(conversation_of(r)))}
    assert len(held) == 8
    assert all((f"p{4 * c}" in held) == (f"p{4 * c + 3}" in held) for c in range(4))


def test_a_part_is_read_back_from_a_record_and_nothing_else_is():
    part = (parts_of(PLACES, (0.5, 0.5), "file") or [])[1]
    assert part_from(part.as_record()) == part
    assert part_from({"of_sha256": "x"}) is None
    assert part_from(part.as_record() | {"first": 3}) is None
    assert part_from(None) is None
