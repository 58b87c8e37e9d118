"""A target that vLLM serves answers a capture: token ids as they come, everything else refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantdraft.checkpoints.tensors.loading import load_tokenizer
from quantdraft.errors import EngineError, TrafficError
from quantdraft.measure.capture import capture
from quantdraft.measure.replay import acceptance_probabilities
from quantdraft.measure.settings import CaptureSettings
from quantdraft.traffic.prompts import encode_prompt, read_prompts
from quantdraft.traffic.traffic import Sampling, Traffic, read_traffic
from tests.conftest import Pair
from tests.fake_vllm import FakeServer, Script, serving

NUM_TOKENS = 8


@pytest.fixture(scope="module")
def own(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Traffic:
    """What the target says in this process."""
    path = tmp_path_factory.mktemp("own") / "traffic.jsonl"
    return capture(
        CaptureSettings(
            str(tiny_pair.target),
            tiny_pair.prompts,
            path,
            sampling=Sampling(),
            max_new_tokens=NUM_TOKENS,
        )
    )


@pytest.fixture
def fake(own: Traffic) -> FakeServer:
    """A server that says the same."""
    return FakeServer(
        {
            response.prompt_token_ids: Script(response.response_token_ids, 2, (1, 1, 1, 1))
            for response in own.responses
        }
    )


def captured(pair: Pair, url: str, output: Path, **options) -> Traffic:
    options = {"sampling": Sampling(), "max_new_tokens": NUM_TOKENS} | options
    return capture(
        CaptureSettings(str(pair.target), pair.prompts, output, target_url=url, **options)
    )


def test_a_served_target_gives_the_traffic_of_one_in_this_process(tiny_pair, own, fake, tmp_path):
    with serving(fake) as url:
        found = captured(tiny_pair, url, tmp_path / "t.jsonl", batch_size=5)
    assert [(r.prompt_id, r.response_token_ids) for r in found.responses] == [
        (r.prompt_id, r.response_token_ids) for r in own.responses
    ]
    assert all(response.logprobs is None for response in found.responses)
    assert found.target["served"] == {"engine": "vllm 0.32.0", "model": "m"}


def test_the_request_says_how_to_sample_and_when_to_stop(tiny_pair, fake, tmp_path):
    with serving(fake) as url:
        sampling = Sampling(temperature=0.7, top_p=0.9, top_k=5, seed=3)
        captured(tiny_pair, url, tmp_path / "t.jsonl", sampling=sampling)
    body = fake.bodies[0]
    assert (body["temperature"], body["top_p"], body["top_k"]) == (0.7, 0.9, 5)
    assert body["max_tokens"] == NUM_TOKENS
    assert body["stop_token_ids"], "the target's own end ends a response"
    assert len({body["seed"] for body in fake.bodies}) == len(fake.bodies)


def test_prompts_beyond_the_servers_positions_are_not_asked(tiny_pair, fake, tmp_path):
    tokenizer = load_tokenizer(tiny_pair.target)
    lengths = [len(encode_prompt(p, tokenizer)) for p in read_prompts(tiny_pair.prompts)]
    shortest, fake.max_model_len = min(lengths), 64
    with serving(fake) as url:
        found = captured(tiny_pair, url, tmp_path / "t.jsonl", max_new_tokens=64 - shortest)
    assert len(found.responses) == lengths.count(shortest)
    assert len(found.skipped) == len(lengths) - len(found.responses)
    assert "64 positions" in found.skipped[0]


def test_a_capture_goes_on_after_the_server_was_gone(tiny_pair, own, fake, tmp_path):
    missing = own.responses[7].prompt_token_ids
    script = fake.scripts.pop(missing)
    with serving(fake) as url:
        with pytest.raises(EngineError, match="no such prompt"):
            captured(tiny_pair, url, tmp_path / "t.jsonl", batch_size=4)
        assert not (tmp_path / "t.jsonl").exists()
        num_before = len(fake.bodies)
        fake.scripts[missing] = script
        captured(tiny_pair, url, tmp_path / "t.jsonl", batch_size=4)
        assert len(fake.bodies) - num_before == len(own.responses) - 4
    assert len(read_traffic(tmp_path / "t.jsonl").responses) == len(own.responses)


def test_no_server_is_one_line(tiny_pair, tmp_path):
    with pytest.raises(EngineError, match="does not answer"):
        captured(tiny_pair, "http://127.0.0.1:9", tmp_path / "t.jsonl")
    with pytest.raises(EngineError, match="is no address of a server"):
        captured(tiny_pair, "localhost:8000", tmp_path / "t.jsonl")


def test_a_password_in_the_url_stands_in_no_file(tiny_pair, fake, tmp_path):
    with serving(fake) as url:
        captured(tiny_pair, url.replace("//", "//me:secret@"), tmp_path / "t.jsonl")
    header = (tmp_path / "t.jsonl").read_text().splitlines()[0]
    assert "secret" not in header
    assert json.loads(header)["target"]["served"]


def test_a_rule_that_needs_probabilities_is_refused(tiny_pair, fake, tmp_path):
    with serving(fake) as url:
        found = captured(tiny_pair, url, tmp_path / "t.jsonl", sampling=Sampling(temperature=1.0))
    with pytest.raises(TrafficError, match="processed_logprobs"):
        acceptance_probabilities(None, found, "rejection")
