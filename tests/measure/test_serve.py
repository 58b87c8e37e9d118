"""The order in which servers are asked, and the arms that addresses are for."""

from __future__ import annotations

import pytest

from quantdraft.errors import OptionError
from quantdraft.measure.served.fleet import visits
from quantdraft.measure.served.serve import parse_urls


def test_arms_come_forward_and_back_and_take_turns_at_being_first():
    arms = ["a", "b", "c", "d"]
    orders = [visits(arms, prompt) for prompt in range(4)]
    for order in orders:
        assert order == order[::-1]
        assert sorted(order) == sorted(arms * 2)
    assert [order[0] for order in orders] == arms


def test_urls_name_arms_and_a_bare_one_is_the_candidates():
    found = parse_urls(["http://h:1/?a=b", "baseline=http://h:2"])
    assert found == {"candidate": "http://h:1/?a=b", "baseline": "http://h:2"}
    with pytest.raises(OptionError, match="second server for candidate"):
        parse_urls(["http://h:1", "candidate=http://h:2"])
