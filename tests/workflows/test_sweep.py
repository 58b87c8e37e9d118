"""sweep: a grid of drafts, recipes and domains; nothing twice, and no failure loses the rest."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from quantdraft.common.locks import sole_writer
from quantdraft.errors import (
    OptionError,
    OutputBusyError,
    OutputError,
    OutputExistsError,
    QuantDraftError,
    TrafficError,
)
from quantdraft.measure.capture import capture
from quantdraft.measure.settings import CaptureSettings, SharedSettings, TimingSettings
from quantdraft.quantize.apply import apply
from quantdraft.quantize.recipe import load_recipe
from quantdraft.record import read_evaluation
from quantdraft.traffic.domains import split_by_domain
from quantdraft.traffic.traffic import Sampling, read_traffic
from quantdraft.workflows.evaluate import evaluate
from quantdraft.workflows.sweep import jobs, sweep
from quantdraft.workflows.sweep.grid import SweepSettings, expand_sweeps, grid, with_absolute_paths
from quantdraft.workflows.sweep.jobs import ApplyJob, EvaluateJob, is_done
from quantdraft.workflows.sweep.local import run_local
from tests.conftest import Pair


def here(path: Path) -> Path:
    return path


@pytest.fixture(scope="module")
def traffic(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve responses, every third of another domain."""
    path = tmp_path_factory.mktemp("sweep") / "traffic.jsonl"
    capture(
        CaptureSettings(
            str(tiny_pair.target), tiny_pair.prompts, path, sampling=Sampling(), max_new_tokens=12
        )
    )
    header, *lines = path.read_text().splitlines()
    named = [
        json.dumps(json.loads(line) | {"domain": "C & C++" if i % 3 == 0 else "prose"})
        for i, line in enumerate(lines)
    ]
    path.write_text("\n".join([header, *named]) + "\n")
    return path


@pytest.fixture
def settings(tiny_pair: Pair, traffic: Path, tmp_path: Path) -> SweepSettings:
    return SweepSettings(
        drafts=(str(tiny_pair.draft),),
        recipes=("int8", "int4"),
        traffic_path=traffic,
        output=tmp_path / "sweep",
        evaluations=SharedSettings(
            threads=1, ks=(1, 2), timing=TimingSettings(no_latency=True), live_prompts=0
        ),
    )


def test_the_ladder_stands_for_its_rungs_and_nothing_comes_twice():
    assert expand_sweeps(["int4", "ladder", "nf4"]) == ("int4", "fp8", "int8", "nf4")


def test_a_candidate_comes_before_the_evaluations_that_need_it(settings, tiny_pair):
    two = replace(settings, drafts=(str(tiny_pair.draft), str(tiny_pair.target)), by_domain=True)
    cells, found = grid(two)
    assert len(cells) == 2 * 2 * 2
    assert len({job.name for job in found}) == len(found) == 8 + 4
    seen: set[str] = set()
    for job in found:
        assert job.needs is None or job.needs in seen
        seen.add(job.name)


def test_two_drafts_of_one_name_are_told_apart(settings, tiny_pair, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "draft").symlink_to(tiny_pair.draft)
    cells, _ = grid(
        replace(settings, drafts=(str(tiny_pair.draft), str(tmp_path / "other" / "draft")))
    )
    assert len({cell.run_dir for cell in cells}) == 4


def test_a_sweep_is_what_apply_and_evaluate_find_one_by_one(settings, tiny_pair, tmp_path):
    result = sweep.sweep(settings)
    assert not result.failed
    apply(load_recipe("int4"), str(tiny_pair.draft), tmp_path / "int4")
    own = evaluate(
        settings.evaluations.evaluation(
            candidate=str(tmp_path / "int4"),
            target=None,
            baseline=str(tiny_pair.draft),
            traffic_path=settings.traffic_path,
            output=tmp_path / "run",
        )
    )
    swept = read_evaluation(settings.output / "runs" / "draft-int4" / "evaluation.json")
    assert swept.acceptance == own.acceptance
    assert swept.verdict.decision == own.verdict.decision
    assert (settings.output / "comparison" / "report.html").is_file()


def test_the_same_sweep_again_computes_nothing_and_a_longer_one_what_is_new(settings, monkeypatch):
    sweep.sweep(settings)
    first = (settings.output / "sweep.json").read_bytes()
    worked: list[str] = []
    for kind in (ApplyJob, EvaluateJob):
        work = kind.work
        monkeypatch.setattr(
            kind, "work", lambda job, at, work=work: (worked.append(job.name), work(job, at))[1]
        )
    said: list[str] = []
    sweep.sweep(settings, said.append)
    assert worked == []
    assert "4 of 4 jobs were done before." in said
    assert (settings.output / "sweep.json").read_bytes() == first

    sweep.sweep(replace(settings, recipes=("int8", "int4", "fp8"), force=True))
    assert worked == ["apply-draft-fp8", "draft-fp8"]


def test_a_job_is_stale_when_what_it_read_has_changed(settings, tmp_path):
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(settings.traffic_path.read_bytes())
    settings = replace(settings, traffic_path=copy, recipes=("int8",))
    sweep.sweep(settings)
    _, (made, judged) = grid(settings)
    assert is_done(made, here)
    assert is_done(judged, here)
    header, *lines = copy.read_text().splitlines()
    fewer = json.dumps(json.loads(header) | {"num_prompts": 8})
    copy.write_text("\n".join([fewer, *lines[:8]]) + "\n")
    assert is_done(made, here)
    assert not is_done(judged, here)
    sweep.sweep(settings)
    record = read_evaluation(judged.output / "evaluation.json")
    assert record.provenance["traffic"]["num_prompts"] == 8


def test_a_recipe_that_cannot_be_applied_is_named_and_the_rest_goes_on(settings):
    said: list[str] = []
    result = sweep.sweep(replace(settings, recipes=("int4-gptq", "int8")), said.append)
    assert set(result.failed) == {"apply-draft-int4-gptq", "draft-int4-gptq"}
    assert [line for line in said if line.startswith("draft-int4-gptq: ")]
    rows = json.loads((settings.output / "sweep.json").read_text())["cells"]
    assert [(row["recipe"], row["error"] is None) for row in rows] == [
        ("int4-gptq", False),
        ("int8", True),
    ]


def test_the_baseline_is_replayed_once_a_draft(settings, monkeypatch):
    replayed = _count_replays(monkeypatch)
    sweep.sweep(settings)
    assert len(replayed) == 1 + len(settings.recipes)


def _count_replays(monkeypatch):
    """Return a list that gets an entry for every replay that is computed."""
    from quantdraft.measure import measure as measuring

    replayed = []
    probabilities = measuring.acceptance_probabilities
    monkeypatch.setattr(
        measuring,
        "acceptance_probabilities",
        lambda *given, **named: (replayed.append(1), probabilities(*given, **named))[1],
    )
    return replayed


def test_workers_are_told_whole_paths_and_ids_of_the_hub_as_they_are(
    settings, tiny_pair, tmp_path, monkeypatch
):
    (tmp_path / "t.jsonl").write_bytes(settings.traffic_path.read_bytes())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "draft").symlink_to(tiny_pair.draft)
    given = replace(
        settings,
        drafts=("draft",),
        recipes=("int4-gptq",),
        traffic_path=Path("t.jsonl"),
        output=Path("out"),
        calibration=Path("owner/texts"),
        executor="ray",
        target="owner/model",
    )
    _, (made, judged) = grid(with_absolute_paths(given))
    assert (made.draft, made.output) == (
        str(tmp_path / "draft"),
        tmp_path / "out" / "candidates" / "draft-int4-gptq",
    )
    assert made.calibration == Path("owner/texts")
    assert judged.settings.traffic.traffic_path == tmp_path / "t.jsonl"
    models = judged.settings.models
    assert (models.target, models.baseline) == ("owner/model", made.draft)


def test_the_replays_of_all_cells_are_kept_in_one_directory_by_content(settings, monkeypatch):
    """Recipes that leave prompts out, and domains, have texts of their own: other files there."""
    given = replace(settings, calibration=settings.traffic_path, recipes=("int8", "int4-gptq"))
    _, found = grid(given)
    places = {job.settings.sweep_replays for job in found if isinstance(job, EvaluateJob)}
    assert places == {settings.output / "shared"}

    replayed = _count_replays(monkeypatch)
    sweep.sweep(replace(settings, by_domain=True))
    assert len(replayed) == 2 + 2 * 2  # neither domain's baseline has taken the other's place
    assert len(list((settings.output / "shared").glob("*.f64"))) == 2


def test_each_domain_is_judged_on_its_own_responses(settings):
    sweep.sweep(replace(settings, recipes=("int8",), by_domain=True))
    runs = settings.output / "runs"
    sizes = {
        run.name: read_evaluation(run / "evaluation.json").provenance["traffic"]["num_prompts"]
        for run in runs.iterdir()
        if run.is_dir()
    }
    assert sizes == {"draft-int8-c-c": 4, "draft-int8-prose": 8}
    assert (settings.output / "comparison" / "prose" / "report.html").is_file()


def test_parts_of_traffic_are_its_responses(traffic, tmp_path):
    parts = split_by_domain(traffic, tmp_path)
    found = [r for path in parts.values() for r in read_traffic(path).responses]
    assert {r.response_token_ids for r in found} == {
        r.response_token_ids for r in read_traffic(traffic).responses
    }
    assert len(found) == 12


def test_traffic_without_domains_is_not_taken_apart(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"prompt_token_ids": [1], "response_token_ids": [2, 3]}\n')
    with pytest.raises(TrafficError, match="Leave out --by-domain"):
        split_by_domain(log, tmp_path)


def test_domains_that_come_to_one_name_are_refused(tmp_path):
    log = tmp_path / "log.jsonl"
    line = {"prompt_token_ids": [1], "response_token_ids": [2, 3]}
    log.write_text("".join(json.dumps(line | {"domain": d}) + "\n" for d in ("a b", "a/b")))
    with pytest.raises(TrafficError, match="two domains give the same file name"):
        split_by_domain(log, tmp_path)


def test_a_job_that_was_killed_before_its_sweep_heard_of_it_is_done(settings, monkeypatch):
    """Killed after the output's last file, and before anything else."""
    alone = replace(settings, recipes=("int8",))
    sweep.sweep(alone)
    _, (made, judged) = grid(alone)
    for job in (made, judged):
        monkeypatch.setattr(type(job), "work", lambda job, at: pytest.fail("done already"))
    (settings.output / "sweep.json").unlink()
    sweep.sweep(alone)
    assert (settings.output / "sweep.json").is_file()


@pytest.mark.parametrize("dies", ["apply", "evaluate"])
def test_a_job_that_was_killed_midway_is_not_done_and_keeps_its_parts(settings, dies, monkeypatch):
    alone = replace(settings, recipes=("int8",))
    _, (made, judged) = grid(alone)
    victim = made if dies == "apply" else judged
    real = type(victim).work

    def half(job, at):
        job.output.mkdir(parents=True)
        if job is made:  # its candidate appears at once: what a kill leaves is hidden
            job.output.rename(job.output.with_name(f".{job.output.name}.abcdefgh.staging"))
        else:
            (job.output / "part").write_text("kept")
        raise KeyboardInterrupt

    monkeypatch.setattr(type(victim), "work", half)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([made, judged], settings)
    assert not is_done(victim, here)
    monkeypatch.setattr(type(victim), "work", real)
    run_jobs([made, judged], settings)
    assert is_done(victim, here)
    assert (judged.output / "part").exists() == (dies == "evaluate")
    assert not list(made.output.parent.glob(".*"))


def run_jobs(jobs, settings):
    return run_local(jobs, settings.output / "logs", lambda outcome: None)


def test_what_stood_there_of_other_inputs_goes_before_the_work_begins(settings):
    _, (made, judged) = grid(replace(settings, recipes=("int8",)))
    run_jobs([made, judged], settings)
    _, (_, other) = grid(
        replace(settings, recipes=("int8",), evaluations=replace(settings.evaluations, ks=(1,)))
    )
    assert (other.output / "evaluation.json").is_file()
    jobs.begin(other, here)
    assert not other.output.exists()


def test_a_full_disk_ends_the_sweep_and_is_no_failure_of_a_recipe(settings, monkeypatch):
    def full(job, at):
        raise OutputError("cannot write 'x': No space left on device.")

    monkeypatch.setattr(ApplyJob, "work", full)
    with pytest.raises(OutputError, match="No space left"):
        sweep.sweep(settings)
    assert not (settings.output / "sweep.json").exists()


def test_a_log_that_the_disk_refuses_is_one_line(settings, monkeypatch):
    def full(job, at):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ApplyJob, "work", full)
    with pytest.raises(OutputError, match=r"cannot write '.*apply-draft-int8\.log': No space left"):
        sweep.sweep(settings)


def test_two_sweeps_into_one_directory_exclude_each_other(settings):
    with (
        sole_writer(settings.output, is_inside=True),
        pytest.raises(OutputBusyError, match="being written by process"),
    ):
        sweep.sweep(settings)


@pytest.mark.parametrize(
    "wrong",
    [{"recipes": ("int8", "fp9")}, {"drafts": ("./none",)}, {"traffic_path": Path("none.jsonl")}],
)
def test_a_wrong_name_is_told_before_anything_is_written(settings, wrong):
    with pytest.raises(QuantDraftError):
        sweep.sweep(replace(settings, **wrong))
    assert not settings.output.exists()


def test_a_sweep_that_was_killed_at_its_first_write_goes_on(settings, monkeypatch):
    def die(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        with pytest.raises(MemoryError):
            sweep.sweep(settings)
    assert [path.name[0] for path in settings.output.iterdir()] == ["."]
    sweep.sweep(replace(settings, recipes=("int8",)))
    assert not list(settings.output.glob(".*"))


def test_another_sweeps_directory_needs_force(settings):
    settings.output.mkdir()
    (settings.output / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="--force to add to it"):
        sweep.sweep(settings)
    assert (settings.output / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipes": ()}, "at least one --draft"),
        ({"is_shared": True}, "--shared needs --executor ray"),
        ({"ray_address": "auto"}, "--ray-address needs --executor ray"),
    ],
)
def test_options_that_do_not_fit_are_refused(settings, change, message):
    with pytest.raises(OptionError, match=message):
        sweep.sweep(replace(settings, **change))


def test_calibration_on_the_evaluated_responses_is_refused_by_domain(settings):
    given = replace(settings, by_domain=True, calibration=settings.traffic_path)
    with pytest.raises(OptionError, match="calibrate on another file"):
        sweep.sweep(given)


def test_a_worker_of_another_version_refuses():
    with pytest.raises(Exception, match="Install the same version on every node"):
        jobs.require_same_version("0.0.0")
