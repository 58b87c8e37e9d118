"""`evaluate --engine llamacpp` against the fake server: the second measured engine.

The test marked `engine` serves the embedded pair by the real one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.engines.llamacpp.candidate import candidate_checkpoint, gguf_of
from quantdraft.engines.llamacpp.gguf import FULL_PRECISION, GgufConversion, cached_gguf, convert
from quantdraft.engines.llamacpp.measured import LlamacppInstallation
from quantdraft.engines.llamacpp.server import find_server
from quantdraft.engines.registry import ENGINES, MEASURED, engine_named, measured_engine
from quantdraft.errors import OptionError
from quantdraft.measure.capture import capture
from quantdraft.measure.served.cross_check import rounds_replayed
from quantdraft.measure.settings import CaptureSettings
from quantdraft.quantize.apply import apply
from quantdraft.quantize.recipe import load_recipe
from quantdraft.record import Evaluation, read_evaluation
from quantdraft.traffic.traffic import Sampling, Traffic
from quantdraft.workflows.evaluate import evaluate
from tests.conftest import Pair
from tests.evaluation_settings import evaluation_settings
from tests.fake_llamacpp import build_server

K = 4
# Writes which model it was given, as a "GGUF".
CONVERTER = """\
import sys
from pathlib import Path
Path(sys.argv[sys.argv.index("--outfile") + 1]).write_text(" ".join(sys.argv[1:]))
"""


@pytest.fixture
def llamacpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of llama.cpp with a fake server and a fake converter, and a cache of its own."""
    monkeypatch.delenv("QUANTDRAFT_LLAMACPP", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_LLAMACPP", str(tmp_path / "plan.json"))
    directory = tmp_path / "llama.cpp"
    build_server(directory)
    (directory / "convert_hf_to_gguf.py").write_text(CONVERTER)
    (directory / "conversion").mkdir()
    (directory / "conversion" / "base.py").write_text("class TextModel: ...\n")
    return directory


@pytest.fixture(scope="module")
def traffic(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Traffic]:
    path = tmp_path_factory.mktemp("served") / "traffic.jsonl"
    settings = CaptureSettings(str(tiny_pair.target), tiny_pair.prompts, path, max_new_tokens=12)
    found = capture(settings)
    return path, found


def write_plan(path: Path, pair: Pair, traffic: Traffic, more_rounds: int = 0) -> None:
    """What llama-server answers and counts: the last token of a text comes from no round."""
    draft = load_model(pair.draft, torch.float32, torch.device("cpu"))
    texts = [r.response_token_ids for r in traffic.responses]
    engine = measured_engine("llamacpp")
    cut = [text[: engine.num_round_tokens(len(text), True)] for text in texts]
    responses = [
        type(r)(r.prompt_id, r.prompt_token_ids, text)
        for r, text in zip(traffic.responses, cut, strict=True)
    ]
    rounds = rounds_replayed(draft, responses, "greedy", Sampling(), K)
    scripts = [
        [r.prompt_token_ids, r.response_token_ids, round(n) + more_rounds, [1, 0, 0, 0]]
        for r, n in zip(traffic.responses, rounds, strict=True)
    ]
    plan = {"scripts": scripts, "proposed": 4, "ms": 10.0, "tokens": [1], "draft_tokens": [1]}
    path.write_text(json.dumps(plan | {"rounds": 1, "accepted": 0}))


def served(pair: Pair, traffic: Path, llamacpp: Path, run: Path, **given: Any) -> Evaluation:
    settings = {"candidate": str(pair.draft), "dtype": "float32", "num_loads": 1} | given
    return evaluate(
        evaluation_settings(
            baseline=str(pair.draft),
            target=str(pair.target),
            traffic_path=traffic,
            output=run,
            ks=(K,),
            engine="llamacpp",
            path=llamacpp,
            **settings,
        )
    )


def test_counters_are_replays_by_llamacpps_convention(tiny_pair, traffic, llamacpp, tmp_path):
    path, found = traffic
    write_plan(tmp_path / "plan.json", tiny_pair, found)
    evaluation = served(tiny_pair, path, llamacpp, tmp_path / "run")
    assert read_evaluation(tmp_path / "run" / "evaluation.json") == evaluation
    record = evaluation.served
    assert (record.engine, record.dtype, record.device) == ("llamacpp", "float32", "cpu")
    assert record.version == "9.9 (build 1, commit abc)"
    assert set(record.arms) == {"autoregressive", "baseline", "candidate", "control"}
    for arm in ("baseline", "candidate", "control"):
        assert record.arms[arm].is_exact
        for request in record.arms[arm].requests:
            assert request.num_drafts == request.num_drafts_replayed
            assert request.text == "identical"
            assert request.decode_seconds == pytest.approx(0.010)
    assert all(r.num_drafts == 0 for r in record.arms["autoregressive"].requests)
    assert "engine_disagrees" not in {alarm.code for alarm in evaluation.verdict.alarms}
    assert "## Served by llama.cpp" in (tmp_path / "run" / "report.md").read_text()
    logs = {log.name for log in (tmp_path / "run").glob("*.log")}
    assert logs == {f"llamacpp-{arm}.log" for arm in record.arms}


def test_rounds_that_replay_does_not_find_raise_the_alarm(tiny_pair, traffic, llamacpp, tmp_path):
    path, found = traffic
    write_plan(tmp_path / "plan.json", tiny_pair, found, more_rounds=2)
    evaluation = served(tiny_pair, path, llamacpp, tmp_path / "run")
    assert "engine_disagrees" in {alarm.code for alarm in evaluation.verdict.alarms}


def test_a_model_is_converted_once_and_a_quantized_one_refused(tiny_pair, llamacpp, tmp_path):
    found = LlamacppInstallation(llamacpp)
    draft = open_checkpoint(tiny_pair.draft)
    file = found.model_file(draft, "float32")
    assert file.name == "model-f32.gguf"
    assert f"{tiny_pair.draft} --outfile" in file.read_text()
    written = file.stat().st_mtime_ns
    assert found.model_file(draft, "float32").stat().st_mtime_ns == written
    assert found.model_file(draft, "bfloat16").name == "model-bf16.gguf"
    apply(load_recipe("int8"), str(tiny_pair.draft), tmp_path / "int8")
    with pytest.raises(OptionError, match="is quantized, and its GGUF is made from full precision"):
        found.model_file(open_checkpoint(tmp_path / "int8"), "float32")


def test_what_llamacpp_is_not_measured_with_is_refused(tiny_pair, traffic, llamacpp, tmp_path):
    engine = measured_engine("llamacpp")
    assert engine.refusal("greedy", Sampling()) is None
    assert "temperature 0.8" in engine.refusal("rejection", Sampling(temperature=0.8))
    with pytest.raises(OptionError, match="--engine-spec"):
        served(tiny_pair, traffic[0], llamacpp, tmp_path / "run", spec=("a=1",))
    (llamacpp / "convert_hf_to_gguf.py").unlink()
    with pytest.raises(OptionError, match=r"no convert_hf_to_gguf\.py\. Give --engine-path"):
        LlamacppInstallation(llamacpp).model_file(open_checkpoint(tiny_pair.draft), "float32")
    (tmp_path / "x.gguf").touch()
    with pytest.raises(OptionError, match="Give --baseline"):
        candidate_checkpoint(str(tmp_path / "x.gguf"), None, llamacpp)


def test_measured_engines_are_named(tiny_pair):
    assert [name for name in ENGINES if engine_named(name).measured] == list(MEASURED)
    with pytest.raises(OptionError, match=r"sglang is not measured\. Use vllm, llamacpp"):
        measured_engine("sglang")


# The real server


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = os.environ.get("QUANTDRAFT_LLAMACPP")
    if not directory or find_server(Path(directory)) is None:
        pytest.skip("no llama-server: $QUANTDRAFT_LLAMACPP names no built llama.cpp")
    pytest.importorskip("gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(directory)


@pytest.mark.slow
@pytest.mark.engine
def test_a_gguf_candidate_is_its_files_weights_bytes_and_type(real: Path, tmp_path: Path):
    draft = pair_dir() / "draft"
    file = convert(GgufConversion(draft, "q8_0", real), tmp_path)
    checkpoint = open_checkpoint(Path(candidate_checkpoint(str(file), str(draft), real)))
    own = gguf_of(checkpoint)
    assert (own.file, own.gguf_type) == (file, "q8_0")
    # 34 bytes for 32 weights, where floats of 16 bits have 64.
    floats = open_checkpoint(draft)
    mlp = sum(t.num_bytes for name, t in floats.tensors.items() if ".mlp." in name)
    assert own.ledger.mlp_bytes == pytest.approx(mlp * 34 / 64)
    assert checkpoint.tensors.keys() == floats.tensors.keys()
    assert measured_engine("llamacpp").input_types(checkpoint) == {"int8"}


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("recipe", [None, "int8"])
def test_the_real_server_counts_what_replay_says(real: Path, tmp_path: Path, recipe: str | None):
    pair = Pair(pair_dir() / "target", pair_dir() / "draft", pair_dir() / "prompts.jsonl")
    candidate = pair.draft
    if recipe is not None:
        candidate = tmp_path / recipe
        apply(load_recipe(recipe), str(pair.draft), candidate)
    path = tmp_path / "traffic.jsonl"
    given = CaptureSettings(str(pair.target), pair.prompts, path, max_new_tokens=32, limit=5)
    capture(given)
    evaluation = served(pair, path, real, tmp_path / "run", candidate=str(candidate))
    assert evaluation.served.undefined == {}
    for arm in ("baseline", "control"):
        for request in evaluation.served.arms[arm].requests:
            assert request.num_drafts == request.num_drafts_replayed
    for request in evaluation.served.arms["candidate"].requests:
        if recipe is None:
            assert request.num_drafts == request.num_drafts_replayed
        else:  # its kernels round activations to 8 bits
            assert request.num_drafts_low <= request.num_drafts <= request.num_drafts_high
    assert "engine_disagrees" not in {alarm.code for alarm in evaluation.verdict.alarms}
    assert FULL_PRECISION["float32"] == "f32"
    assert cached_gguf(GgufConversion(pair.draft, "f32", real, "model")).is_file()
