"""evaluate: a candidate against its full-precision self, on the same tokens, against one target."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.claims import claims_but_not_quantized
from quantdraft.checkpoints.configs import num_positions
from quantdraft.checkpoints.tensors.devices import pick_device, pick_dtype
from quantdraft.checkpoints.tensors.loading import speller
from quantdraft.common.files import file_sha256, require_outside, write_text
from quantdraft.common.locks import sole_writer
from quantdraft.common.progress import say, step
from quantdraft.common.resume import STAGES_DIR
from quantdraft.engines.registry import measured_engine
from quantdraft.engines.serving_settings import ServingSettings
from quantdraft.errors import OutputExistsError
from quantdraft.judge.acceptance import Floats, replay_rounds
from quantdraft.judge.comparison.times import widths_near_best
from quantdraft.judge.judge import Measurements, judged
from quantdraft.judge.verdict.policy import load_policy
from quantdraft.judge.verdict.suspicion import suspicions
from quantdraft.measure.kept_replays import shared_replays
from quantdraft.measure.latency.timing_plan import Review
from quantdraft.measure.live_check import check_live
from quantdraft.measure.measure import has_identical_logits, measure_served, replay_arm
from quantdraft.measure.models import Models, open_models
from quantdraft.measure.run_traffic import TRAFFIC_FILE, default_rule, read_run_traffic
from quantdraft.measure.settings import EvaluateSettings, ModelSettings
from quantdraft.measure.step_times import (
    measure_steps,
    served_latency,
    served_trace,
    with_points_of,
)
from quantdraft.measure.subject import Subject
from quantdraft.quantize.ledger import byte_ledger
from quantdraft.record import RECORD_FILE, Evaluation, Latency, write_evaluation
from quantdraft.record.provenance import command_line, environment, model_identity, weights_sha256
from quantdraft.record.step_bytes import Ledger
from quantdraft.record.wording import counted
from quantdraft.report import remove_pages, report_again, try_pages, write_report
from quantdraft.traffic.ledger import left_out_of
from quantdraft.traffic.trace import Trace, read_trace
from quantdraft.traffic.traffic import Traffic


def evaluate(settings: EvaluateSettings) -> Evaluation:
    """Measure, decide, write the record and its pages to `settings.run_dir`, return the record.

    Parts that a killed run with the same settings had finished are not computed again. Raises
    OutputExistsError for a finished run, OutputBusyError where another process writes this one.
    """
    settings.check()
    if settings.models.threads is not None:
        torch.set_num_threads(settings.models.threads)
    trace = None if settings.timing.trace is None else read_trace(settings.timing.trace)
    models = open_models(_as_engine_loads(settings), settings.timing.longest_context)
    if trace is not None:
        say(f"the trace: {trace.reading.sentence}")
        opened = [each for each in (models.candidate, models.target) if each is not None]
        known = [num_positions(each.text_config) for each in opened]
        positions = min((each for each in known if each is not None), default=None)
        timing = with_points_of(settings.timing, trace, positions)
        settings = replace(settings, timing=timing)
    policy = load_policy(settings.policy)
    run_dir = settings.run_dir
    for model in (models.candidate, models.baseline, models.target):
        if model is not None:
            require_outside(run_dir, model.path, "a model")
    with sole_writer(run_dir, is_inside=True):
        _begin_run(run_dir, settings)
        measured = measure_all(settings, models, run_dir, trace)
        with step("judge"):
            evaluation = judged(measured, policy)
        # The record comes first: no failure of its pages may lose what was measured.
        remove_pages(run_dir)
        write_evaluation(evaluation, run_dir / RECORD_FILE)
        with step("write the report"):
            try_pages(
                lambda: write_report(evaluation, run_dir),
                run_dir / RECORD_FILE,
                report_again(run_dir),
            )
    return evaluation


def measure_all(
    settings: EvaluateSettings, models: Models, run_dir: Path, trace: Trace | None = None
) -> Measurements:
    """Measure what is asked for; each part is kept in the run directory when it is done."""
    device = pick_device(settings.models.device)
    dtype = pick_dtype(settings.models.dtype, device)
    traffic = read_run_traffic(settings, models, run_dir)
    rule = settings.traffic.acceptance_rule or default_rule(traffic)
    num_tokens = counted(traffic.num_tokens, "token")
    say(f"{counted(len(traffic.responses), 'response')}, {num_tokens}, rule {rule}")

    subject = Subject(models, traffic, rule, device, dtype, run_dir)
    probabilities = {
        "baseline": replay_arm(subject, "baseline", shared_replays(settings)),
        "candidate": replay_arm(subject, "candidate"),
    }
    false_claim = claims_but_not_quantized(models.candidate)
    is_same = None if false_claim else has_identical_logits(subject)
    served = measure_served(subject, settings)
    if served is None:
        review = review_by_acceptance(probabilities, traffic, settings.ks)
        latency, *grid = measure_steps(subject, settings.timing, settings.ks, review)
        live = check_live(subject, probabilities, settings.ks, settings.live_prompts, settings.seed)
    else:
        latency, grid, live = served_latency(subject, settings.timing, served), [], ()
    is_control = _is_copy(models.candidate, is_same)
    own_ledger = _engine_ledger(settings, models.candidate)
    return Measurements(
        name=_name(models.candidate),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        rule=rule,
        ks=settings.ks,
        probabilities=probabilities,
        traffic=traffic,
        latency=latency,
        grid=tuple(grid),
        live=live,
        served=served,
        trace=None if trace is None else served_trace(settings.timing, trace),
        is_control=is_control,
        not_quantized=false_claim,
        has_identical_logits=is_same,
        ledgers=(byte_ledger(models.baseline), own_ledger or byte_ledger(models.candidate)),
        provenance=_provenance(settings, models, traffic, device),
        seed=settings.seed,
        spell=speller((models.target or models.candidate).path),
        baseline_name=_baseline_name(models, is_control or own_ledger is not None),
    )


def review_by_acceptance(
    probabilities: Mapping[str, list[Floats]], traffic: Traffic, ks: tuple[int, ...]
) -> Callable[[Latency], Review]:
    """Return what judges half of the timing: which k are worth more time, and what contradicts."""
    ids = [response.prompt_id for response in traffic.responses]
    lengths = {}
    for arm, keep in probabilities.items():
        replayed = replay_rounds(ids, keep, ks)
        lengths[arm] = {k: replayed.counts(k).mean_acceptance_length for k in ks}

    def review(latency: Latency) -> Review:
        doubts = tuple(alarm.message for alarm in suspicions(latency))
        return Review(widths_near_best(lengths, latency), doubts)

    return review


def _is_copy(candidate: Checkpoint, is_same: bool | None) -> bool:
    """Return whether the candidate is the control: what `identity` made, or a draft in floats that
    computes the same.

    Any other draft in floats is a candidate like a quantized one: a draft that was trained anew.
    """
    recipe = (candidate.manifest or {}).get("recipe", {})
    is_plain = candidate.quantization is None
    return is_plain and (bool(is_same) or recipe.get("name") == "identity")


def _as_engine_loads(settings: EvaluateSettings) -> ModelSettings:
    """Return the models, with the candidate as the engine loads it: llama.cpp makes a GGUF."""
    models, serving = settings.models, settings.serving
    if serving.is_native:
        return models
    engine = measured_engine(serving.engine)
    return replace(models, candidate=engine.candidate(models.candidate, models.baseline, serving))


def _engine_ledger(settings: EvaluateSettings, candidate: Checkpoint) -> Ledger | None:
    """Return what a step reads of the file that the engine serves for the candidate, if another."""
    serving = settings.serving
    return None if serving.is_native else measured_engine(serving.engine).served_ledger(candidate)


def _baseline_name(models: Models, is_same_draft: bool) -> str:
    """Return how the baseline is called: by its own name where the candidate is another draft."""
    is_other = models.candidate.quantization is None and not is_same_draft
    return f"baseline '{models.baseline.name}'" if is_other else "full-precision draft"


def _name(candidate: Checkpoint) -> str:
    recipe = (candidate.manifest or {}).get("recipe", {})
    return str(recipe.get("name") or candidate.name)


def _begin_run(run_dir: Path, settings: EvaluateSettings) -> None:
    """Refuse a finished run; with --force drop its finished parts, once.

    A forced run that was killed goes on with its own parts: beside them stands which record they
    are to replace.
    """
    record, replaces = run_dir / RECORD_FILE, run_dir / STAGES_DIR / "replaces"
    if not record.exists():
        return
    if not settings.force:
        raise OutputExistsError(
            f"'{run_dir}' holds a finished run. Give another --output, or --force to replace "
            "it; `quantdraft report` shows it."
        )
    digest = file_sha256(record)
    if replaces.is_file() and replaces.read_text(encoding="utf-8") == digest:
        return
    shutil.rmtree(run_dir / STAGES_DIR, ignore_errors=True)
    if settings.traffic.prompts is not None:  # else it may be the traffic that was given
        (run_dir / TRAFFIC_FILE).unlink(missing_ok=True)
    write_text(replaces, digest)


def _provenance(
    settings: EvaluateSettings, models: Models, traffic: Traffic, device: torch.device
) -> dict[str, Any]:
    asked, target = settings.models, models.target
    source = settings.traffic.traffic_path or settings.traffic.prompts
    identity = None if target is None else model_identity(target, asked.target)
    return {
        **environment(str(device)),
        "target": identity,
        "baseline": model_identity(models.baseline, asked.baseline),
        "candidate": model_identity(models.candidate, asked.candidate),
        "command": command_line(sys.argv[1:]),
        "compute_dtype": str(pick_dtype(asked.dtype, device)).removeprefix("torch."),
        "traffic": {
            "path": str(source),
            "sha256": traffic.sha256,
            "num_prompts": len(traffic.responses),
            "num_tokens": traffic.num_tokens,
            "sampling": None if traffic.sampling is None else asdict(traffic.sampling),
            "target": traffic.target,
            "is_of_target": _is_of_target(traffic, identity),
            **_how_read(traffic),
            **({"part": traffic.part} if traffic.part else {}),
        },
        **_trainings(models),
        "seeds": {"bootstrap": settings.seed, "live": settings.seed},
        **_engine_settings(settings.serving),
    }


def _trainings(models: Models) -> dict[str, Any]:
    """Return what the training of each draft cost and gained, where `distill` made one."""
    found: dict[str, Any] = {}
    for role, model in (("baseline", models.baseline), ("candidate", models.candidate)):
        training = (model.manifest or {}).get("training")
        if training:
            facts = {key: training.get(key) for key in ("minutes", "num_updates", "num_tokens")}
            looks, settings = training.get("looks") or [{}], training.get("settings") or {}
            found[role] = facts | {
                "loss": settings.get("loss"),
                "num_speculative_tokens": settings.get("k"),
                "traffic_sha256": training.get("sha256"),
                "selection_rate_before": looks[0].get("acceptance_rate"),
                "selection_rate_after": (training.get("best") or {}).get("acceptance_rate"),
            }
    return {"training": found} if found else {}


def _how_read(traffic: Traffic) -> dict[str, Any]:
    """Return what a log was read as, what was left out of it, and how it was asked to be read."""
    with_options = {"read_with": traffic.read_with} if traffic.read_with else {}
    if traffic.reading is not None:
        return {"reading": traffic.reading.as_record(), **with_options}
    left_out = [asdict(each) for each in left_out_of(traffic.skipped)]
    return {**({"reading": {"left_out": left_out}} if left_out else {}), **with_options}


def _is_of_target(traffic: Traffic, identity: dict[str, Any] | None) -> bool | None:
    """Return whether the target's files are those that made the traffic; None: it is not known."""
    made_by = (traffic.target or {}).get("weights_sha256")
    if made_by is None or identity is None:
        return None
    hashes = {name: each for name, each in identity["sha256"].items() if name != "config.json"}
    return bool(weights_sha256(hashes) == made_by)


def _engine_settings(serving: ServingSettings) -> dict[str, Any]:
    """Return what the servers of an engine were given, besides what the record says of them."""
    if serving.is_native:
        return {}
    found = measured_engine(serving.engine).passed_on.recorded_variables()
    given = {"args": list(serving.args), "spec": list(serving.spec), "variables": found}
    return {"engine": {"name": serving.engine, **given}}
