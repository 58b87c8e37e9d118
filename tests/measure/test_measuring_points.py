"""Which points of batch and context an evaluation times."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from quantdraft.measure.settings import TimingSettings
from quantdraft.measure.step_times import timed_points

# Halfway through a response of 100 tokens: contexts of 100, 200, … 1100.
RESPONSES = [
    SimpleNamespace(prompt_token_ids=(0,) * (50 + 100 * i), response_token_ids=(0,) * 100)
    for i in range(11)
]


TRAFFIC = SimpleNamespace(responses=RESPONSES)


def test_without_lists_only_the_operating_point_is_timed():
    assert timed_points(TimingSettings(batch_size=2), TRAFFIC) == ((2, 600),)
    assert timed_points(TimingSettings(batch_size=2, context_length=64), TRAFFIC) == ((2, 64),)


@pytest.mark.parametrize(
    ("options", "points"),
    [
        ({"context_lengths": (64, 128)}, ((2, 64), (2, 128))),
        ({"batch_sizes": (1, 8), "context_lengths": (64,)}, ((1, 64), (8, 64))),
        # the 10th, 50th and 90th percentile: 200, 600 and 1000, to the nearest 16
        ({"batch_sizes": (8,)}, ((8, 192), (8, 608), (8, 992))),
        # the operating point is not timed twice
        ({"context_lengths": (600, 64)}, ((2, 64),)),
    ],
)
def test_lists_are_crossed_and_contexts_default_to_the_traffics_own_range(options, points):
    assert timed_points(TimingSettings(batch_size=2, **options), TRAFFIC) == ((2, 600), *points)
