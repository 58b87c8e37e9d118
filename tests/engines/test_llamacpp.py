"""llama.cpp's server without llama.cpp: a fake whose answers and counters are known.

The tests marked `engine` want the real one: $QUANTDRAFT_LLAMACPP names llama.cpp's sources, built.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantdraft.checkpoints.reference import embedded_prompts
from quantdraft.engines.engine import LaunchPair
from quantdraft.engines.llamacpp.client import LlamacppClient
from quantdraft.engines.llamacpp.gguf import GgufConversion, convert
from quantdraft.engines.llamacpp.measured import MeasuredLlamacpp
from quantdraft.engines.llamacpp.server import (
    LOG,
    find_server,
    llamacpp_command,
    llamacpp_variables,
    require_server,
    version,
)
from quantdraft.engines.llamacpp.trial import load_and_speculate, max_model_len
from quantdraft.engines.measured import Request, ServerPlan
from quantdraft.engines.process import free_port, running
from quantdraft.engines.registry import engine_named
from quantdraft.errors import EngineError
from quantdraft.judge.acceptance import replay_rounds
from quantdraft.traffic.traffic import Sampling
from quantdraft.workflows.export import gguf_check
from quantdraft.workflows.export.gguf_check import try_server
from quantdraft.workflows.export.target import Target
from tests import fake_llamacpp
from tests.benchmarks.llamacpp_counts import Counts, predicted_counts
from tests.fake_llamacpp import build_server

PLAN: dict[str, Any] = {
    "tokens": [5, 6, 7, 8],
    "draft_tokens": [5, 6, 7, 8],
    "proposed": 6,
    "accepted": 2,
    "rounds": 3,
    "ms": 30.0,
}

PLAN_5 = ServerPlan(Path("/t"), "auto", 5, 512)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of llama.cpp whose built server is the fake; its plan is in plan.json."""
    monkeypatch.delenv("QUANTDRAFT_LLAMACPP", raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("FAKE_LLAMACPP", str(tmp_path / "plan.json"))
    directory = tmp_path / "llama.cpp"
    build_server(directory)
    plan(tmp_path)
    return directory


def plan(tmp_path: Path, **changes: Any) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(PLAN | changes))


def speculate(fake: Path, **options: Any) -> Any:
    files = Path("/t.gguf"), Path("/d.gguf")
    return load_and_speculate(*files, llamacpp=fake, prompts=["a", (1, 2)], **options)


# What is proven


def test_counts_are_the_engines_own_summed_over_prompts(fake):
    found = speculate(fake)
    assert (found.loaded, found.error, found.version) == (True, None, "9.9 (build 1, commit abc)")
    # Two prompts; the warm-up counts for nothing.
    assert (found.accepted, found.proposed, found.rounds) == (4, 12, 6)
    assert (found.text_equal, found.num_equal_texts, found.num_tokens) == (True, 2, 8)
    # 30 ms for the three tokens after the first.
    assert found.ms_per_token == pytest.approx(10.0)


def test_another_text_than_the_targets_is_told(fake, tmp_path):
    plan(tmp_path, draft_tokens=[5, 6, 9, 8])
    found = speculate(fake)
    assert (found.loaded, found.text_equal, found.num_equal_texts) == (True, False, 0)


def test_a_draft_that_is_left_unused_in_silence_is_not_loaded(fake, tmp_path):
    plan(tmp_path, proposed=0, accepted=0)
    found = speculate(fake)
    assert (found.loaded, found.accepted, found.text_equal) == (False, None, None)
    assert found.error == (
        "llama-server proposed no draft token: srv    load_model: failed to initialize speculative "
        "decoding context: draft model vocab type must match target model to use speculation"
    )


def test_a_draft_that_does_not_load_is_a_result_with_the_servers_reason(fake, tmp_path):
    plan(tmp_path, unloadable=["d.gguf"])
    found = speculate(fake)
    assert found.loaded is False
    assert "stopped while starting" in found.error
    assert "failed to load model, 'd.gguf'" in found.error
    assert "\n" not in found.error
    assert "log:" not in found.error


def test_a_target_that_does_not_load_is_no_fault_of_the_draft(fake, tmp_path):
    plan(tmp_path, unloadable=["t.gguf"])
    with pytest.raises(EngineError, match=r"the target alone: .*failed to load model, 't.gguf'$"):
        speculate(fake)
    with pytest.raises(EngineError, match=r"\(log: '.*llamacpp-target.log'\)"):
        speculate(fake, log_dir=tmp_path / "kept")


def test_a_server_that_dies_with_the_draft_gives_its_last_words(fake, tmp_path):
    plan(tmp_path, dies=True)
    found = speculate(fake)
    assert found.loaded is False
    assert "failed while answering: ggml.c:1: GGML_ASSERT(false) failed" in found.error


def test_logs_stay_where_they_are_wanted(fake, tmp_path):
    speculate(fake, log_dir=tmp_path / "logs")
    names = {path.name for path in (tmp_path / "logs").iterdir()}
    assert names == {"llamacpp-target.log", "llamacpp-draft.log"}


# The client


def test_every_setting_that_changes_the_text_is_sent(fake, tmp_path):
    plan(tmp_path, bodies=str(tmp_path / "bodies"))
    speculate(fake, max_tokens=7)
    bodies = [json.loads(line) for line in (tmp_path / "bodies").read_text().splitlines()]
    sent = [body for body in bodies if "prompt" in body]  # the others are texts to tokenize
    wanted = {"temperature": 0.0, "n_predict": 7, "cache_prompt": False, "return_tokens": True}
    assert all({key: body[key] for key in wanted} == wanted for body in sent)
    # Each server: a warm-up with the first prompt, then both.
    assert [body["prompt"] for body in sent] == [[1], [1], [1, 2]] * 2


def test_a_refusal_is_one_line(fake, tmp_path):
    plan(tmp_path, refused=True)
    with pytest.raises(EngineError, match="answered 400: exceeds the available context size"):
        speculate(fake)


def test_nobody_there_is_an_error_with_the_address():
    with pytest.raises(EngineError, match=r"127.0.0.1:\d+ does not answer"):
        LlamacppClient(f"http://127.0.0.1:{free_port()}").complete(
            Request((1,), 1, Sampling(), 0, ())
        )


def test_the_servers_tokenizer_is_asked(fake, tmp_path):
    program, port = require_server(fake), free_port()
    command = llamacpp_command(program, ServerPlan(Path("/t.gguf"), "auto", 0, 512), None, port)
    with running(command, port, tmp_path / "log", os.environ, LOG) as server:
        server.wait_until_healthy(30)
        assert LlamacppClient(server.url).tokenize("four") == (4,)


# The command line


def test_the_command_is_the_exported_launch_line_on_the_loopback():
    command = llamacpp_command(Path("/b/llama-server"), PLAN_5, Path("/d"), 1234, ("-t", "1"))
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[-6:-4] == ["-t", "1"]  # and then ours, which win
    launched = engine_named("llamacpp").launch(LaunchPair("/t", Path("/d"), 5)).split()
    assert set(launched[1:]) <= set(command)
    assert command[command.index("--spec-draft-p-min") + 1] == "0"
    alone = llamacpp_command(Path("/b"), PLAN_5, None, 1234)
    assert not any("spec" in word or word == "-md" for word in alone)


def test_a_server_is_looked_for_in_the_directory_the_variable_and_the_path(
    fake, tmp_path, monkeypatch
):
    program = fake / "build" / "bin" / "llama-server"
    assert find_server(fake) == program
    assert find_server(tmp_path) is None
    with pytest.raises(EngineError, match=r"no llama-server found: build llama\.cpp"):
        require_server(None)
    monkeypatch.setenv("QUANTDRAFT_LLAMACPP", str(fake))
    assert find_server(tmp_path) == program
    monkeypatch.delenv("QUANTDRAFT_LLAMACPP")
    monkeypatch.setenv("PATH", str(program.parent))
    assert find_server(None) == program


def test_a_server_hears_nothing_of_options_in_the_environment(monkeypatch):
    monkeypatch.setenv("LLAMA_ARG_SPEC_DRAFT_P_MIN", "0.9")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    found = llamacpp_variables()
    assert not found.keys() & {"LLAMA_ARG_SPEC_DRAFT_P_MIN", "HF_TOKEN"}
    assert found["OMP_WAIT_POLICY"] == "passive"


def test_a_program_that_is_no_server_is_refused(tmp_path):
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho broken\n")
    program.chmod(0o755)
    with pytest.raises(EngineError, match="is no llama-server: it says 'broken'"):
        version(program)


def test_the_context_holds_the_longest_answer_and_a_proposal():
    assert max_model_len([(1,) * 700, "a"], 100) > 800
    command = llamacpp_command(Path("/b"), replace(PLAN_5, max_model_len=3), None, 1234)
    assert command[command.index("-c") + 1] == "512"


def test_the_reason_is_an_error_and_not_its_echo(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "0.00.1 I srv  llama_server: initializing ...\n"
        "0.00.2 E llama_model_load: error loading model: unknown model architecture: 'x'\n"
        "0.00.3 E srv    load_model: failed to load draft model, 'd.gguf'\n"
        "0.00.3 E srv  llama_server: exiting due to model loading error\n"
        "0.00.4 I srv    operator(): operator(): cleaning up before exit...\n"
    )
    assert LOG.last_words(log) == (
        "llama_model_load: error loading model: unknown model architecture: 'x'"
    )


def test_a_log_without_an_error_of_its_own_gives_the_echo_and_an_empty_one_says_so(tmp_path):
    log = tmp_path / "log"
    log.write_text("0.00.1 I srv  initializing ...\n0.00.3 E srv x: failed to load model, 'd'\n")
    assert LOG.last_words(log) == "srv x: failed to load model, 'd'"
    assert LOG.errors_in(log) == []
    log.write_text("")
    assert LOG.last_words(log) == "it said nothing"


# The convention of its counters


@pytest.mark.parametrize(
    ("is_kept", "expected"),
    [
        # k = 4. The first token is the prompt's. All kept: five a round, then 4 wanted, 3 proposed.
        ([True] * 10, Counts(2, 4 + 3, 4 + 3)),
        # Nothing kept: one token a round, the last one a plain step.
        ([False] * 4, Counts(2, 2 + 1, 0)),
        ([True, True, False, True, True, True], Counts(2, 4 + 2, 1 + 2)),
        ([True], Counts(0, 0, 0)),
        ([True, True], Counts(0, 0, 0)),
    ],
)
def test_counts_follow_from_what_is_kept(is_kept, expected):
    assert predicted_counts(is_kept, 4) == expected


def test_every_token_is_the_prompts_a_rounds_or_the_last_step():
    for seed in range(64):
        is_kept = [bool(seed >> bit & 1) for bit in range(6)] * 3
        for k in (1, 2, 5):
            counts = predicted_counts(is_kept, k)
            in_rounds = counts.accepted + counts.rounds
            assert len(is_kept) - 1 - in_rounds in (0, 1)


def test_rounds_are_those_of_the_text_without_its_last_token():
    """What `evaluate` replays: the convention differs from the others' in the last round alone."""
    engine = MeasuredLlamacpp()
    for seed in range(64):
        is_kept = [bool(seed >> bit & 1) for bit in range(6)] * 3
        for length in range(1, len(is_kept) + 1):
            cut = engine.num_round_tokens(length, is_cut=True)
            for k in (1, 2, 5):
                keep = np.array(is_kept[:cut], float)
                replayed = replay_rounds(["p"], [keep], [k]).num_drafts[0][0]
                assert replayed == predicted_counts(is_kept[:length], k).rounds


# The proof of an export


def conversion(fake: Path) -> GgufConversion:
    return GgufConversion(Path("/draft"), "q4_0", fake)


def test_what_was_seen_is_one_sentence(fake, tmp_path):
    target = tmp_path / "t.gguf"
    target.touch()
    found = try_server(conversion(fake), Path("/d.gguf"), Target(str(target)), 4)
    assert found.warnings == ()
    (seen,) = found.seen
    assert seen.startswith("llama-server 9.9 (build 1, commit abc) loaded it")
    # Four prompts: 4 x 2 of 4 x 6, in 4 x 3 rounds.
    assert "8 of 24 proposed tokens accepted (33.3%)" in seen
    assert "12 rounds, mean acceptance length 1.67" in seen
    assert "4 of 4 texts are the target's own" in seen


def test_doubts_are_warnings(fake, tmp_path):
    plan(tmp_path, accepted=0, draft_tokens=[5, 6, 9, 8])
    target = tmp_path / "t.gguf"
    target.touch()
    found = try_server(conversion(fake), Path("/d.gguf"), Target(str(target)), 4)
    nothing, text = found.warnings
    assert "accepted none of 24" in nothing
    assert "another text" in text


def test_a_draft_that_llamacpp_does_not_use_is_refused(fake, tmp_path):
    plan(tmp_path, proposed=0)
    target = tmp_path / "t.gguf"
    target.touch()
    with pytest.raises(EngineError, match=r"does not use this draft.*Nothing was written"):
        try_server(conversion(fake), Path("/d.gguf"), Target(str(target)), 4)


def test_what_cannot_be_tried_is_said_in_one_line(fake, tmp_path):
    no_server = try_server(conversion(tmp_path), Path("/d.gguf"), Target("org/target"), 4)
    assert no_server.seen == ()
    assert "no llama-server is built in" in no_server.warnings[0]
    no_target = try_server(conversion(fake), Path("/d.gguf"), Target("org/target"), 4)
    assert "the target 'org/target' is no GGUF file on this machine" in no_target.warnings[0]
    plan(tmp_path, unloadable=["t.gguf"])
    (tmp_path / "t.gguf").touch()
    unserved = try_server(conversion(fake), Path("/d.gguf"), Target(str(tmp_path / "t.gguf")), 4)
    assert "failed to load model, 't.gguf'" in unserved.warnings[0]


def test_a_large_target_is_not_converted_for_the_proof(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_check, "MAX_TARGET_BYTES", 3)
    (tmp_path / "model.safetensors").write_bytes(b"four")
    found = try_server(conversion(fake), Path("/d.gguf"), Target(str(tmp_path), {}), 4)
    assert "too large to be converted" in found.warnings[0]


def test_the_embedded_prompts_are_texts():
    prompts = embedded_prompts(3)
    assert len(prompts) == 3
    assert all(isinstance(prompt, str) and prompt for prompt in prompts)


def test_the_fake_and_the_log_format_agree_on_what_an_error_is(tmp_path):
    (tmp_path / "log").write_text(fake_llamacpp.ERROR_LINE)
    assert len(LOG.errors_in(tmp_path / "log")) == 1


# The real server


@pytest.fixture
def llamacpp() -> Path:
    directory = os.environ.get("QUANTDRAFT_LLAMACPP")
    if not directory or find_server(Path(directory)) is None:
        pytest.skip("no llama-server: $QUANTDRAFT_LLAMACPP names no built llama.cpp")
    pytest.importorskip("gguf")
    return Path(directory)


def converted(source: Path, kind: str, role: str, llamacpp: Path, directory: Path) -> Path:
    return convert(GgufConversion(source, kind, llamacpp, role), directory)


@pytest.mark.slow
@pytest.mark.engine
def test_llamacpps_counters_are_replays(llamacpp, tmp_path):
    """Float32, greedy: what the server counts is what its text gives, to the token."""
    import torch
    from transformers import AutoModelForCausalLM

    from quantdraft.checkpoints.reference import pair_dir
    from quantdraft.engines.llamacpp.trial import answers
    from quantdraft.measure.replay import acceptance_probabilities
    from quantdraft.traffic.traffic import Response, Traffic

    draft = converted(pair_dir() / "draft", "f32", "draft", llamacpp, tmp_path)
    target = converted(pair_dir() / "target", "f32", "target", llamacpp, tmp_path)
    requests = [Request(ids, 48, Sampling(), 0, ()) for ids in ((9, 300, 17, 42), (1000, 8, 8))]
    plan = ServerPlan(target, "float32", 4, 512)
    program, log = require_server(llamacpp), tmp_path / "log"
    found = answers(program, plan, draft, lambda _: requests, log, ("-t", "1"))
    model = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file=draft.name, dtype=torch.float32
    )
    texts = [
        Response(str(i), r.prompt_token_ids, a.completion.token_ids)
        for i, (r, a) in enumerate(zip(requests, found, strict=True))
    ]
    keeps = acceptance_probabilities(model, Traffic(tuple(texts), Sampling()), "greedy")
    predicted = [predicted_counts([bool(each) for each in keep], 4) for keep in keeps]
    counters = [each.counters for each in found]
    counted = [Counts(c.num_drafts, c.num_draft_tokens, c.num_accepted_tokens) for c in counters]
    assert counted == predicted
    assert sum(each.accepted for each in counted) > 0


@pytest.mark.slow
@pytest.mark.engine
def test_llamacpp_leaves_a_draft_of_another_vocabulary_unused_and_we_say_so(llamacpp, tmp_path):
    from quantdraft.checkpoints.reference import pair_dir

    swapped = tmp_path / "swapped"
    shutil.copytree(pair_dir() / "draft", swapped)
    tokenizer = json.loads((swapped / "tokenizer.json").read_text(encoding="utf-8"))
    ids = tokenizer["model"]["vocab"]
    by_id = {number: token for token, number in ids.items()}
    ids[by_id[4000]], ids[by_id[4001]] = 4001, 4000
    (swapped / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    draft = converted(swapped, "f32", "draft", llamacpp, tmp_path)
    target = converted(pair_dir() / "target", "f32", "target", llamacpp, tmp_path)
    found = load_and_speculate(
        target, draft, prompts=embedded_prompts(4), llamacpp=llamacpp, max_tokens=4
    )
    assert found.loaded is False
    assert "proposed no draft token" in found.error
    assert "vocabs are not compatible" in found.error
