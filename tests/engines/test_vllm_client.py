"""The client of a vLLM server: a fake server whose answers and counters are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from quantdraft.engines.counters import parse_counters
from quantdraft.engines.measured import Request, ask
from quantdraft.engines.process import free_port
from quantdraft.engines.vllm.client import COUNTERS, VllmClient
from quantdraft.errors import EngineError
from quantdraft.traffic.traffic import Sampling
from tests.fake_vllm import FakeServer, K, Script, serving


def request(prompt: tuple[int, ...] = (1, 2), **changes: object) -> Request:
    plain = Request(prompt, 8, Sampling(), 0, ())
    return replace(plain, **changes)


SCRIPTS = {
    (1, 2): Script((7, 8, 9, 10), 2, (1, 0, 0, 0)),
    (3,): Script((5, 5, 5, 5, 5, 5), 1, (1, 1, 1, 1)),
}


def test_an_answer_comes_with_its_own_counters():
    fake = FakeServer(SCRIPTS)
    with serving(fake) as url:
        client = VllmClient(url)
        first = ask(client, request())
        second = ask(client, request((3,)))
    assert first[0].token_ids == (7, 8, 9, 10)
    assert (first[1].num_drafts, first[1].num_accepted_tokens_per_pos) == (2, (1, 0, 0, 0))
    assert (second[1].num_drafts, second[1].num_accepted_tokens_per_pos) == (1, (1, 1, 1, 1))
    assert second[1].num_draft_tokens == K
    assert first[0].num_first_tokens == 1


def test_every_setting_that_changes_the_text_is_sent():
    fake = FakeServer(SCRIPTS)
    warm = Sampling(temperature=0.8, top_p=0.9, top_k=50)
    with serving(fake) as url:
        client = VllmClient(url)
        client.complete(request(sampling=warm, seed=3))
        client.complete(request(stop_token_ids=(0,)))
    sent, other = fake.bodies
    wanted = {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "seed": 3, "max_tokens": 8}
    assert {key: sent[key] for key in wanted} == wanted
    assert sent["prompt"] == [1, 2]
    assert (sent["ignore_eos"], other["ignore_eos"], other["stop_token_ids"]) == (True, False, [0])


def test_counters_that_lag_are_waited_for():
    fake = FakeServer(SCRIPTS)
    with serving(fake) as url:
        client = VllmClient(url)
        ask(client, request())
        fake.lag = 3  # the first of them is the reading before the next request
        assert ask(client, request((3,)))[1].num_drafts == 1


def test_tokens_of_others_are_an_error():
    fake = FakeServer(SCRIPTS)
    events = fake.events

    def with_company(body: dict[str, object]) -> Iterator[dict[str, object]]:
        fake.num_foreign += 3
        return events(body)

    fake.events = with_company  # type: ignore[method-assign]
    with serving(fake) as url, pytest.raises(EngineError, match=r"counted 7 tokens.*of 4: others"):
        ask(VllmClient(url), request())


def test_times_are_from_the_request_to_the_first_and_to_the_last_token():
    fake = FakeServer(SCRIPTS, seconds_per_token=0.02)
    with serving(fake) as url:
        completion = VllmClient(url).complete(request())
    assert 0.02 <= completion.first_token_seconds < completion.seconds
    # Three tokens after the first, each after a sleep of at least 20 ms.
    assert completion.seconds - completion.first_token_seconds >= 0.055


def test_a_servers_refusal_is_one_line():
    with serving(FakeServer(SCRIPTS)) as url, pytest.raises(EngineError) as error:
        VllmClient(url).complete(request((9, 9)))
    assert str(error.value) == f"{url}/v1/completions answered 400: no such prompt"


def test_a_server_without_token_ids_is_refused():
    fake = FakeServer(SCRIPTS)
    fake.has_token_ids = False
    with serving(fake) as url, pytest.raises(EngineError, match="no token ids"):
        VllmClient(url).complete(request())


def test_nobody_there_is_an_error_with_the_address():
    with pytest.raises(EngineError, match=r"127.0.0.1:\d+ does not answer"):
        VllmClient(f"http://127.0.0.1:{free_port()}").counters()
    with pytest.raises(EngineError, match="no address"):
        VllmClient("localhost:8000")


def test_counters_are_summed_over_engines():
    per_pos = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    text = (
        'vllm:generation_tokens_total{engine="0"} 10.0\n'
        'vllm:generation_tokens_total{engine="1"} 1.2e+01\n'
        'vllm:spec_decode_num_drafts_total{engine="0"} 3.0\n'
        f'{per_pos}{{engine="0",position="1"}} 1.0\n'
        f'{per_pos}{{engine="0",position="0"}} 2.0\n'
        f'{per_pos}{{engine="1",position="0"}} 5.0\n'
    )
    counters = parse_counters(text, COUNTERS)
    assert (counters.num_tokens, counters.num_drafts) == (22, 3)
    assert counters.num_accepted_tokens_per_pos == (7, 1)
