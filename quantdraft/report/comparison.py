"""Several evaluations side by side: which recipe, on the same traffic, against the same target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from quantdraft.errors import OptionError, PairingError
from quantdraft.report.blocks import (
    Block,
    Bullets,
    Document,
    Forest,
    Lines,
    Notice,
    Paragraph,
    Section,
    Series,
    Span,
    Table,
)
from quantdraft.report.headline import TONES, at_k, model_name, sentence
from quantdraft.report.wording import (
    UNDEFINED,
    length,
    milliseconds,
    num_bytes,
    times,
    valued,
)
from quantdraft.results import Evaluation
from quantdraft.verdict.checks import OVER_BASELINE

DEFAULT_LIMIT = 1.02


def comparison(evaluations: Sequence[Evaluation]) -> Document:
    """One row a recipe, fastest first; recipes without a speed come last.

    Raises PairingError when two runs differ in traffic, acceptance rule, target or baseline, and
    OptionError when there is no run.
    """
    if not evaluations:
        raise OptionError("there is no run to compare. Give at least one run directory.")
    require_same_question(evaluations)
    ordered = sorted(evaluations, key=_speed_order)
    first = ordered[0]
    return Document(
        title=f"{len(ordered)} recipes side by side",
        subtitle=_subtitle(first),
        banner=None,
        lead=(*_conditions_differ(ordered), Paragraph(_answer(ordered)), forest(ordered)),
        sections=(
            Section("Recipes", (speed_table(ordered), acceptance_table(ordered))),
            Section("Acceptance length by k", (length_chart(ordered), length_table(ordered))),
            Section("Verdicts", (Bullets(tuple(_verdict(e) for e in ordered)),)),
        ),
        footer="Every number comes from the runs' evaluation.json.",
    )


def require_same_question(evaluations: Sequence[Evaluation]) -> None:
    """Raise PairingError, naming two runs, where they did not measure the same thing."""
    first = evaluations[0]
    for other in evaluations[1:]:
        for what, here, there in _question(first, other):
            if here != there:
                raise PairingError(
                    f"runs {first.name!r} and {other.name!r} differ in {what}: "
                    f"{_short(here)} and {_short(there)}. "
                    "Compare runs of one question, or evaluate again on the same inputs."
                )


def _question(first: Evaluation, other: Evaluation) -> Iterator[tuple[str, Any, Any]]:
    """What two runs must share, with each run's value."""
    traffic = [evaluation.provenance.get("traffic") or {} for evaluation in (first, other)]
    yield "traffic", traffic[0].get("sha256"), traffic[1].get("sha256")
    yield "acceptance rule", first.acceptance_rule, other.acceptance_rule
    yield "target", *_models(first, other, "target")
    yield "baseline draft", *_models(first, other, "baseline")


def _models(first: Evaluation, other: Evaluation, role: str) -> tuple[Any, Any]:
    """The most certain thing that both records know of a model: its hashes, or else its name."""
    here, there = (evaluation.provenance.get(role) or {} for evaluation in (first, other))
    for key in ("sha256", "weights_sha256", "name"):
        if here.get(key) and there.get(key):
            return here[key], there[key]
    return None, None


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 24 else text[:12] + "…")


def _conditions(evaluation: Evaluation) -> tuple[Any, ...]:
    latency = evaluation.latency
    return (latency.engine, latency.device, latency.batch_size, latency.context_length)


def _conditions_differ(evaluations: Sequence[Evaluation]) -> tuple[Block, ...]:
    """Speeds of different machines or batches may stand side by side, but not unsaid."""
    found = {_conditions(evaluation) for evaluation in evaluations}
    if len(found) == 1:
        return ()
    rows = tuple(
        f"{e.name}: {e.latency.engine} on {e.latency.device}, batch {e.latency.batch_size}, "
        f"context {e.latency.context_length}"
        for e in evaluations
    )
    return (Notice("Timed under different conditions: read across rows with care", rows, "doubt"),)


def _subtitle(evaluation: Evaluation) -> str:
    latency = evaluation.latency
    return " · ".join(
        (
            f"draft {model_name(evaluation.provenance, 'baseline')}",
            f"target {model_name(evaluation.provenance, 'target')}",
            f"{len(evaluation.prompts)} prompts",
            f"rule {evaluation.acceptance_rule}",
            f"batch {latency.batch_size}",
            f"context {latency.context_length}",
            f"{latency.engine} on {latency.device}",
        )
    )


def _answer(ordered: Sequence[Evaluation]) -> str:
    go = [evaluation for evaluation in ordered if evaluation.verdict.decision == "go"]
    counts = ", ".join(
        f"{sum(e.verdict.decision == decision for e in ordered)} {decision}"
        for decision in ("go", "no-go", "inconclusive")
    )
    if not go:
        return f"No recipe earns a go ({counts})."
    speed = valued(go[0].operating_point.speedup_over_baseline, "speedup")
    return f"Fastest recipe with a go: {go[0].name}, {speed} over the baseline draft ({counts})."


def _speed_order(evaluation: Evaluation) -> tuple[bool, float, str]:
    speedup = evaluation.operating_point.speedup_over_baseline
    return speedup is None, -speedup.value if speedup else 0.0, evaluation.name


def speed_table(ordered: Sequence[Evaluation]) -> Table:
    """What each recipe gains, and the decision."""
    columns = (
        "Recipe",
        "Decision",
        "Speedup over baseline",
        "Speedup over AR",
        "Draft step",
        "Draft latency saving",
        "Best k",
    )
    return Table(
        columns=columns,
        rows=tuple(_speed_row(evaluation) for evaluation in ordered),
        numeric=frozenset(range(2, 7)),
        tone_column=1,
        tones=tuple(TONES[evaluation.verdict.decision] for evaluation in ordered),
        caption="At each run's operating point. AR: autoregressive, the target alone.",
    )


def _speed_row(evaluation: Evaluation) -> tuple[str, ...]:
    point = evaluation.operating_point
    best = evaluation.best_k.get("candidate")
    return (
        evaluation.name,
        evaluation.verdict.decision,
        valued(point.speedup_over_baseline, "speedup"),
        valued(point.speedup_over_autoregressive, "speedup"),
        milliseconds(point.candidate_draft_step_ms),
        valued(point.draft_latency_saving, "saving"),
        str(best) if best is not None else UNDEFINED,
    )


def common_k(ordered: Sequence[Evaluation]) -> int | None:
    """The k nearest to 4 that every run replayed: rates at different k do not compare."""
    shared = set.intersection(*(set(each.num_speculative_tokens) for each in ordered))
    return min(shared, key=lambda k: (abs(k - 4), k)) if shared else None


def acceptance_table(ordered: Sequence[Evaluation]) -> Table:
    """What each recipe costs in acceptance, at one k for all, and what it reads."""
    k = common_k(ordered)
    columns = ("Recipe", "Acceptance rate", "Loss", "τ", "Bytes per step", "Ceiling")
    return Table(
        columns=columns,
        rows=tuple(_acceptance_row(evaluation, k) for evaluation in ordered),
        numeric=frozenset(range(1, 6)),
        caption=(
            f"Acceptance {'has no common k' if k is None else f'at k = {k} for all'}. "
            "Loss: baseline minus candidate acceptance rate. Ceiling: baseline bytes over "
            "candidate bytes of a draft step."
        ),
    )


def _acceptance_row(evaluation: Evaluation, k: int | None) -> tuple[str, ...]:
    ledger = evaluation.ledger
    return (
        evaluation.name,
        *_acceptance_cells(evaluation, k),
        num_bytes((ledger.get("candidate") or {}).get("step_bytes")),
        times(ledger.get("ceiling")),
    )


def _acceptance_cells(evaluation: Evaluation, k: int | None) -> tuple[str, str, str]:
    acceptance = None if k is None else at_k(evaluation, k)
    if acceptance is None:
        return UNDEFINED, UNDEFINED, UNDEFINED
    return (
        valued(acceptance.candidate_rate, "rate"),
        valued(acceptance.acceptance_rate_loss, "loss"),
        length(acceptance.candidate_length.value),
    )


def forest(ordered: Sequence[Evaluation]) -> Forest:
    """Speedup over the baseline draft, one interval a recipe, against 1 and the verdict's limit."""
    rows = []
    for evaluation in ordered:
        ends = evaluation.operating_point.speedup_over_baseline
        tone = TONES[evaluation.verdict.decision]
        span = Span(ends.value, ends.low, ends.high, None, tone) if ends else None
        ends_words = valued(ends, "speedup")
        rows.append((evaluation.name, span, ends_words))
    limit = _limit(ordered)
    return Forest(
        title="Speedup over the baseline draft",
        description=(
            "95 % intervals at each run's operating point; "
            "coloured by verdict: green go, red no-go, amber inconclusive."
        ),
        rows=tuple(rows),
        limits=((1.0, "no gain"), (limit, f"go from {limit:.2f}×")),
    )


def _limit(evaluations: Sequence[Evaluation]) -> float:
    """The limit that the verdicts themselves used."""
    checks = (check for evaluation in evaluations for check in evaluation.verdict.checks)
    limits = (c.limit for c in checks if c.name == OVER_BASELINE and c.limit is not None)
    return next(limits, DEFAULT_LIMIT)


def length_chart(ordered: Sequence[Evaluation]) -> Lines:
    """τ by k: the baseline once, then every recipe."""
    baseline = tuple(
        (float(row.num_speculative_tokens), row.baseline_length.value)
        for row in ordered[0].acceptance
    )
    series = [Series("baseline", baseline, "baseline", marked_x=ordered[0].best_k.get("baseline"))]
    for evaluation in ordered:
        points = tuple(
            (float(row.num_speculative_tokens), row.candidate_length.value)
            for row in evaluation.acceptance
        )
        best = evaluation.best_k.get("candidate")
        series.append(Series(evaluation.name, points, marked_x=best))
    return Lines(
        title="Mean acceptance length τ, by k",
        description="Tokens emitted a round, bonus included. Rings mark the best k.",
        series=tuple(series),
        x_title="k, tokens proposed a round",
        unit="",
    )


def length_table(ordered: Sequence[Evaluation]) -> Table:
    """The chart's numbers: one row a k, one column a recipe."""
    ks = sorted({k for evaluation in ordered for k in evaluation.num_speculative_tokens})
    return Table(
        columns=("k", "baseline", *(evaluation.name for evaluation in ordered)),
        rows=tuple((str(k), *_lengths(ordered, k)) for k in ks),
        numeric=frozenset(range(1, len(ordered) + 2)),
    )


def _lengths(ordered: Sequence[Evaluation], k: int) -> tuple[str, ...]:
    found = [at_k(evaluation, k) for evaluation in ordered]
    baselines = [row.baseline_length.value for row in found if row]
    baseline = length(baselines[0]) if baselines else UNDEFINED
    return baseline, *(length(row.candidate_length.value) if row else UNDEFINED for row in found)


def _verdict(evaluation: Evaluation) -> str:
    verdict = evaluation.verdict
    alarms = "".join(f" Alarm {alarm.code}: {alarm.message}" for alarm in verdict.alarms)
    settle = f" To settle it: {verdict.to_settle}." if verdict.to_settle else ""
    return f"{evaluation.name}: {verdict.decision}. {sentence(verdict)}{alarms}{settle}"
