"""A trace: what is in flight of it has a closed form where requests come evenly, or by chance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantdraft.errors import TrafficError
from quantdraft.traffic.ledger import Reading
from quantdraft.traffic.trace import Trace, in_flight, read_trace


def trace(*requests: tuple[float, int], context: int = 512) -> Trace:
    """Requests by the ms of their arrival and their tokens."""
    times, tokens = zip(*requests, strict=True)
    contexts = np.full(len(requests), context)
    return Trace(
        Path("t"), "", Reading({}, 0, 0), np.array(times, float), np.array(tokens), contexts
    )


def tokens_by_number(made: Trace, *how: Any) -> dict[int, float]:
    found: dict[int, float] = {}
    for span in in_flight(made, *how):
        found[span.num_requests] = found.get(span.num_requests, 0.0) + span.num_tokens
    return {number: round(tokens, 6) for number, tokens in found.items()}


def ten(number: int) -> float:
    return 10.0


def test_requests_that_do_not_meet_are_alone() -> None:
    assert tokens_by_number(trace((0, 100), (1000, 50), (5000, 1)), ten) == {1: 151}


def test_requests_share_the_batch_while_both_are_in_flight() -> None:
    """The second comes when the first has 50 tokens left: they decode 50 each, then 50 alone."""
    assert tokens_by_number(trace((0, 100), (500, 100)), ten) == {1: 100, 2: 100}
    assert tokens_by_number(trace((0, 100), (0, 100)), ten) == {2: 200}


def test_a_larger_batch_that_takes_longer_keeps_requests_longer() -> None:
    """Two in flight take 20 ms a token: a third, at 2,000 ms, finds both at their 100th token."""
    made = trace((0, 150), (0, 150), (2000, 10))
    assert tokens_by_number(made, lambda number: 10.0 * number) == {2: 280, 3: 30}


def test_the_tokens_of_all_spans_are_those_of_the_trace() -> None:
    rng = np.random.default_rng(1)
    times, sizes = np.sort(rng.random(300) * 9e3), rng.integers(1, 99, 300)
    made = trace(*zip(times.tolist(), sizes.tolist(), strict=True))
    spans = in_flight(made, lambda number: 3.0 + number / 7, 3)
    assert sum(span.num_tokens for span in spans) == pytest.approx(made.num_tokens.sum())


def test_even_arrivals_are_in_flight_as_little_says() -> None:
    """One in 100 ms, 80 tokens of 10 ms each: 8 in flight, but for the first and the last."""
    found = tokens_by_number(trace(*[(100.0 * at, 80) for at in range(1000)]), ten)
    assert found[8] == 1000 * 80 - sum(found[n] for n in found if n != 8)
    assert found[8] / 80_000 > 0.98
    assert max(found) == 8


def test_chance_arrivals_are_in_flight_as_palm_says() -> None:
    """Of Poisson arrivals a token shares its batch with rho others: its own request is one more."""
    rho, num_requests = 4.0, 6000
    times = np.cumsum(np.random.default_rng(2).exponential(1000 / rho, num_requests))
    found = tokens_by_number(trace(*[(float(t), 100) for t in times]), ten)
    mean = sum(number * tokens for number, tokens in found.items()) / (num_requests * 100)
    # Numbers in flight vary by rho and are independent once a service time has passed.
    assert mean == pytest.approx(1 + rho, abs=4 * rho / num_requests**0.5)


def test_servers_share_the_requests_in_turn() -> None:
    four = trace(*[(0.0, 10)] * 4)
    assert tokens_by_number(four, ten) == {4: 40}
    assert tokens_by_number(four, ten, 2) == {2: 40}
    assert tokens_by_number(four, ten, 9) == {1: 40}


def test_tokens_count_at_the_context_of_their_request() -> None:
    made = Trace(
        Path("t"), "", Reading({}, 0, 0), np.zeros(2), np.array([30, 10]), np.array([64, 1024])
    )
    found = {(s.num_requests, s.context_length): s.num_tokens for s in in_flight(made, ten)}
    assert found == {(2, 64): 10, (2, 1024): 10, (1, 64): 20}
    assert made.context_quantiles((0.5, 0.9)) == (64, 1024)


MOONCAKE = [{"timestamp": t, "input_length": 100, "output_length": 20} for t in (0, 1500)]
BAILIAN = [
    {"chat_id": 1, "timestamp": t, "input_length": 100, "output_length": 20} for t in (0.5, 2.0)
]


def written(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in entries))
    return path


def test_times_are_in_the_unit_of_each_format(tmp_path: Path) -> None:
    burst = tmp_path / "burst.csv"
    burst.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,100,20,120,Conversation log\n6.5,GPT-4,100,20,120,API log\n"
    )
    azure = tmp_path / "azure.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,100,20\n2023-11-16 18:17:05.4799600,100,20\n"
    )
    mooncake = written(tmp_path / "m.jsonl", *MOONCAKE)
    bailian = written(tmp_path / "b.jsonl", *BAILIAN)
    for path in (burst, azure, mooncake, bailian):
        found = read_trace(path)
        assert np.diff(found.arrivals_ms) == pytest.approx([1500], abs=1e-3), path
        assert found.num_tokens.tolist() == [20, 20]
        assert found.contexts.tolist() == [110, 110]


def test_what_has_no_time_or_no_length_is_left_out_by_name(tmp_path: Path) -> None:
    odd = [{"input_length": 1, "output_length": 2}, {"timestamp": 3, "messages": []}]
    empty = {"timestamp": 3, "input_length": 1, "output_length": 0}
    found = read_trace(written(tmp_path / "t.jsonl", *MOONCAKE, *odd, empty))
    assert len(found.arrivals_ms) == 2
    assert {each.reason for each in found.reading.left_out} >= {
        "it has no time of arrival",
        "no token was answered",
    }
    assert found.reading.num_lines == 5
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(TrafficError, match=r"no trace of requests .*: it is no line of a trace"):
        read_trace(written(tmp_path / "log.jsonl", chat))
