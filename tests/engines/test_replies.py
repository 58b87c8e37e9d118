"""What a server sends is counted, or refused in one line; it need not be vLLM."""

from __future__ import annotations

import pytest

from quantdraft.engines.counters import Counters, parse_counters
from quantdraft.engines.http_client import error_message, parse_event, without_password
from quantdraft.engines.vllm.client import COUNTERS, completion_piece
from quantdraft.errors import EngineError

PER_POS = "vllm:spec_decode_num_accepted_tokens_per_pos_total"


@pytest.mark.parametrize("value", ["1e999", "-", "e", "1.2.3", "+-1"])
def test_a_counter_that_is_no_count_is_refused(value):
    with pytest.raises(EngineError, match="no count"):
        parse_counters(f"vllm:generation_tokens_total {value}\n", COUNTERS)


def test_counters_of_others_are_not_read():
    text = 'vllm:kv_cache_usage_perc{engine="0"} 1e999\nvllm:generation_tokens_total 3.0\n'
    assert parse_counters(text, COUNTERS).num_tokens == 3


def test_positions_that_come_or_go_between_readings_are_refused():
    before = parse_counters(f'{PER_POS}{{position="0"}} 1.0\n', COUNTERS)
    with pytest.raises(EngineError, match="restarted"):
        Counters(0, 0, 0, (1, 2)).since(before)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"data: {", "not JSON"),
        (b"data: [1]", "no event"),
        (b"data: " + b"[" * 5000, "deep"),
        (b"data: \xff", "not JSON"),
        (b'data: {"error": {"message": "out of\\nmemory"}}', "out of memory"),
    ],
)
def test_an_event_that_is_none_is_refused(line, reason):
    with pytest.raises(EngineError, match=reason) as caught:
        parse_event(line)
    assert str(caught.value).isprintable()


def test_lines_between_events_are_passed_over():
    for line in (b"", b"\n", b": ping\n", b"data: [DONE]\n", b"event: x\n"):
        assert parse_event(line) is None


@pytest.mark.parametrize(
    "choices", [{"token_ids": []}, [1], [{}], [{"token_ids": "12"}], [{"token_ids": [-1]}]]
)
def test_a_piece_without_token_ids_is_refused(choices):
    with pytest.raises(EngineError):
        completion_piece({"choices": choices})


def test_a_piece_has_its_ids_in_order():
    assert completion_piece({"choices": [{"token_ids": [3, 1, 2]}]}) == [3, 1, 2]
    assert completion_piece({"choices": [], "usage": {}}) == []


def test_a_url_is_shown_without_its_user():
    assert without_password("http://me:p@ss@host:1/v1") == "http://host:1/v1"
    assert without_password("http://host:1/v1?a=b") == "http://host:1/v1?a=b"


def test_a_servers_error_is_one_short_line():
    assert error_message('{"error": {"message": "no\\nway"}}') == "no way"
    assert error_message("plain\n text") == "plain text"
    assert error_message("") == "nothing"
    assert len(error_message("x" * 1000)) == 300
