"""distill, end to end on a toy pair: what it gains, writes, resumes, and may be judged on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("llmcompressor")

from click.testing import CliRunner  # noqa: E402

from quantdraft import cli  # noqa: E402
from quantdraft.checkpoints.checkpoint import open_checkpoint  # noqa: E402
from quantdraft.checkpoints.tensors.loading import load_model  # noqa: E402
from quantdraft.checkpoints.tensors.unpacking import (  # noqa: E402
    dequantize,
    quantized_modules,
    read_tensor,
    stored_weight,
)
from quantdraft.common.files import file_sha256  # noqa: E402
from quantdraft.errors import (  # noqa: E402
    CheckpointError,
    OptionError,
    OutputExistsError,
    RecipeError,
    TrafficError,
)
from quantdraft.judge.acceptance import replay_rounds  # noqa: E402
from quantdraft.measure.capture import capture  # noqa: E402
from quantdraft.measure.filters import without_calibration  # noqa: E402
from quantdraft.measure.models import source_of  # noqa: E402
from quantdraft.measure.replay import acceptance_probabilities  # noqa: E402
from quantdraft.measure.settings import (  # noqa: E402
    CaptureSettings,
    EvaluateSettings,
    ModelSettings,
    TimingSettings,
    TrafficSettings,
)
from quantdraft.quantize.apply import apply  # noqa: E402
from quantdraft.quantize.recipe import load_recipe  # noqa: E402
from quantdraft.quantize.training import trainer as training  # noqa: E402
from quantdraft.quantize.training.settings import TrainingSettings  # noqa: E402
from quantdraft.quantize.training.through_rounding import StoredWeight  # noqa: E402
from quantdraft.report.blocks import Table  # noqa: E402
from quantdraft.report.sections.evidence import evidence_section  # noqa: E402
from quantdraft.traffic.parts import conversation_of, part_from, place_of  # noqa: E402
from quantdraft.traffic.traffic import Traffic, read_traffic  # noqa: E402
from quantdraft.workflows import distill as distilling  # noqa: E402
from quantdraft.workflows.distill import DistillSettings, distill, distilled_lines  # noqa: E402
from quantdraft.workflows.evaluate import evaluate  # noqa: E402
from tests.conftest import Pair, write_prompts  # noqa: E402

CPU = torch.device("cpu")
SHORT = TrainingSettings(epochs=4, batch_tokens=256, learning_rate=1e-3)


@pytest.fixture(scope="module")
def traffic_path(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("distill")
    write_prompts(root / "prompts.jsonl", 24)
    path = root / "traffic.jsonl"
    capture(CaptureSettings(str(tiny_pair.target), root / "prompts.jsonl", path, max_new_tokens=24))
    return path


@pytest.fixture
def settings(tiny_pair: Pair, traffic_path: Path, tmp_path: Path) -> DistillSettings:
    return DistillSettings(
        tmp_path / "out",
        TrafficSettings(traffic_path),
        str(tiny_pair.draft),
        str(tiny_pair.target),
        load_recipe("int4"),
        SHORT,
        device="cpu",
    )


def acceptance(path: Path, traffic: Traffic) -> float:
    keep = acceptance_probabilities(load_model(path, torch.float32, CPU), traffic, "greedy")
    return (
        replay_rounds([r.prompt_id for r in traffic.responses], keep, [4]).counts(4).acceptance_rate
    )


def test_a_draft_trained_through_its_rounding_is_accepted_more_on_what_it_never_saw(
    settings, traffic_path
):
    made = distill(replace(settings, work=settings.output.with_name("work")))
    manifest = made.manifest
    assert manifest is not None
    seen = manifest["training"]
    first, best = seen["looks"][0], seen["best"]
    assert best["acceptance_rate"] > first["acceptance_rate"]
    assert seen["acceptance_rate_as_written"] == best["acceptance_rate"]
    assert any("acceptance" in line for line in distilled_lines(made))

    traffic = read_traffic(traffic_path)
    parts = {name: part_from(part) for name, part in seen["parts"].items()}
    for response in traffic.responses:
        place = place_of(conversation_of(response))
        held = [name for name, part in parts.items() if part is not None and part.holds(place)]
        assert len(held) == 1
        assert (response.prompt_id in seen["prompt_ids"]) == (held != ["judging"])
    judged = without_calibration(traffic, made)
    assert not {r.prompt_id for r in judged.responses} & set(seen["prompt_ids"])
    assert len(judged.responses) == 12
    rounded = apply("int4", settings.draft, settings.output.with_name("int4"))
    assert acceptance(made.path, judged) > acceptance(rounded.path, judged)

    # It is what `apply` would write of the trained floats, and evaluate's baseline is the draft.
    assert manifest["proof"]["num_quantized_modules"] == 14
    assert manifest["recipe"]["name"] == "int4-distilled"
    assert source_of(made) == str(Path(settings.draft).absolute())
    floats = open_checkpoint(settings.output.with_name("work") / "floats")
    for module, fmt in quantized_modules(made).items():
        through = StoredWeight(torch.bfloat16, fmt)(read_tensor(floats, f"{module}.weight").float())
        assert torch.equal(dequantize(stored_weight(made, module, fmt)), through)


class Killed(BaseException):
    """A kill: nothing of the program runs after it."""


def test_a_killed_training_ends_with_the_bits_of_one_that_was_not(settings, monkeypatch, tmp_path):
    whole = distill(settings)
    assert not settings.work_dir.exists()

    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(training, "SAVE_COST", 0.0)
    update, number = training.Trainer._update, 0

    def dying(self, share):
        nonlocal number
        number += 1
        if number in (4, 7):
            raise Killed
        update(self, share)

    monkeypatch.setattr(training.Trainer, "_update", dying)
    again = replace(settings, output=tmp_path / "again")
    for _ in range(2):
        with pytest.raises(Killed):
            distill(again)
        assert not again.output.exists()
        assert again.work_dir.exists()
    resumed = distill(again)
    assert number >= 9
    files = sorted(path.name for path in whole.path.glob("*.safetensors"))
    assert files
    for name in files:
        assert file_sha256(whole.path / name) == file_sha256(resumed.path / name)
    own, other = (m.manifest["training"]["looks"] for m in (whole, resumed))  # type: ignore[index]
    without_clock = [[look | {"seconds": 0} for look in looks] for looks in (own, other)]
    assert without_clock[0] == without_clock[1]


def test_an_unfinished_training_of_other_settings_is_not_gone_on_with(settings, monkeypatch):
    def die(self, share):
        self.save()
        raise Killed

    monkeypatch.setattr(training.Trainer, "_update", die)
    with pytest.raises(Killed):
        distill(settings)
    other = replace(settings, training=replace(SHORT, loss="tv"))
    with pytest.raises(OutputExistsError, match="of other settings"):
        distill(other)


def test_a_draft_in_floats_passes_on_what_it_was_trained_on(settings, traffic_path, tmp_path):
    made = distill(replace(settings, recipe=None, training=replace(SHORT, epochs=0.5, loss="ce")))
    assert made.manifest is not None
    assert "recipe" not in made.manifest
    assert made.quantization is None
    candidate = apply("int8", str(made.path), tmp_path / "int8")
    assert candidate.manifest is not None
    assert candidate.manifest["training"] == made.manifest["training"]
    traffic = read_traffic(traffic_path)
    assert len(without_calibration(traffic, candidate).responses) == 12


def test_all_of_a_file_may_be_seen_and_is_then_refused_to_be_judged_on(settings, traffic_path):
    made = distill(replace(settings, share=1.0, training=replace(SHORT, epochs=0.2, loss="ce")))
    assert made.manifest is not None
    assert made.manifest["training"]["parts"]["judging"] is None
    with pytest.raises(TrafficError, match="was trained on all of this traffic"):
        without_calibration(read_traffic(traffic_path), made)


@pytest.mark.parametrize("loss", ["tv", "lk", "rounds", "rounds-kl"])
def test_every_loss_trains(settings, loss):
    made = distill(replace(settings, training=replace(SHORT, epochs=0.4, loss=loss, k=2)))
    looks = made.manifest["training"]["looks"]  # type: ignore[index]
    assert looks[-1]["num_steps"] >= 1
    assert looks[-1]["loss"] >= 0


def test_a_cut_of_the_target_is_trained(settings, tiny_pair):
    cut = replace(settings, draft=None, layers=(0,), recipe=None)
    made = distill(replace(cut, training=replace(SHORT, epochs=0.4)))
    assert made.config["num_hidden_layers"] == 1
    manifest = made.manifest
    assert manifest is not None
    assert "draft" not in manifest
    assert manifest["cut_from"]["layers"] == [0]
    with pytest.raises(OptionError, match="Give --baseline"):
        source_of(made)


def test_what_is_written_must_be_accepted_as_what_was_trained(settings, monkeypatch):
    """Other weights than the trained ones: nothing appears."""
    right = distilling.write_floats

    def wrong(draft, trained, output):
        return right(draft, {n: -t for n, t in trained.items()}, output)

    monkeypatch.setattr(distilling, "write_floats", wrong)
    with pytest.raises(CheckpointError, match="not what was trained"):
        distill(replace(settings, recipe=None, training=replace(SHORT, epochs=0.2)))
    assert not settings.output.exists()


@pytest.mark.usefixtures("no_pages")
def test_an_evaluation_judges_on_the_rest_and_says_what_the_training_cost(settings, tmp_path):
    made = distill(replace(settings, training=replace(SHORT, epochs=0.4)))
    evaluation = evaluate(
        EvaluateSettings(
            ModelSettings(str(made.path), str(settings.target)),
            settings.traffic,
            (4,),
            TimingSettings(no_latency=True),
            live_prompts=0,
            output=tmp_path / "run",
        )
    )
    assert len(evaluation.prompts) == 12
    assert evaluation.name == "int4-distilled"
    cost = evaluation.provenance["training"]["candidate"]
    assert cost["loss"] == "kl"
    assert cost["num_tokens"] > 0
    (table,) = [b for b in evidence_section(evaluation).blocks if isinstance(b, Table)]
    rows = dict(row[:2] for row in table.rows)
    assert "the candidate" in rows["Training"]
    assert "those that are not trained on" in rows["Traffic"]


def test_settings_that_cannot_work_are_refused_before_anything_is_read(settings, tmp_path):
    for change, said in (
        ({"target": None}, "--loss kl needs --target"),
        ({"draft": None}, "--draft, or --layers"),
        ({"share": 2.0}, "--share 2"),
        ({"dtype": "float16"}, "float16"),
    ):
        with pytest.raises(OptionError, match=said):
            distill(replace(settings, **change))
    with pytest.raises(RecipeError, match="int4-gptq"):
        distill(replace(settings, recipe=load_recipe("int4-gptq")))
    assert not list(tmp_path.iterdir())


def test_a_quantized_draft_is_refused(settings, tmp_path):
    made = apply("int8", settings.draft, tmp_path / "int8")
    with pytest.raises(CheckpointError, match="is quantized"):
        distill(replace(settings, draft=str(made.path)))


def test_the_command_prints_the_manifest(settings, traffic_path, tmp_path):
    shutil.copy(traffic_path, tmp_path / "t.jsonl")
    given = ["--traffic", tmp_path / "t.jsonl", "--target", settings.target, "-o", tmp_path / "o"]
    words = ["distill", "--init-layers", "0-1", *given, "--epochs", "0.2", "--recipe", "int8"]
    result = CliRunner().invoke(cli.main, [*map(str, words), "--json", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["cut_from"]["layers"] == [0, 1]
