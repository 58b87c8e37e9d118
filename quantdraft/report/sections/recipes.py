"""Recipes side by side as tables: speeds, acceptance, lengths, and which pairs really differ."""

from __future__ import annotations

from collections.abc import Sequence

from quantdraft.record import Comparison, Evaluation, RecipePair
from quantdraft.record.wording import (
    UNDEFINED,
    length,
    milliseconds,
    num_bytes,
    step_change,
    times,
    valued,
)
from quantdraft.report.blocks import Table, Tone
from quantdraft.report.sections.headline import TONES


def speed_table(ordered: Sequence[Evaluation]) -> Table:
    """Return what each recipe gains, and the decision."""
    columns = (
        "Recipe",
        "Decision",
        "Speedup over baseline",
        "Speedup over AR",
        "Draft step",
        "Against the baseline's step",
        "k",
    )
    return Table(
        columns=columns,
        rows=tuple(_speed_row(evaluation) for evaluation in ordered),
        numeric=frozenset(range(2, 7)),
        tone_column=1,
        tones=tuple(TONES[evaluation.verdict.decision] for evaluation in ordered),
        caption=(
            "Each draft at its own best k: the candidate's, and the baseline's where it differs. "
            "AR: autoregressive, the target alone."
        ),
    )


def _speed_row(evaluation: Evaluation) -> tuple[str, ...]:
    point = evaluation.operating_point
    return (
        evaluation.name,
        evaluation.verdict.decision,
        valued(point.speedup_over_baseline, "speedup"),
        valued(point.speedup_over_autoregressive, "speedup"),
        milliseconds(point.candidate_draft_step_ms),
        step_change(point.draft_latency_saving),
        _best_ks(evaluation),
    )


def _best_ks(evaluation: Evaluation) -> str:
    """Return `5`, or `5 (baseline 4)` where the baseline has another k."""
    best, point = evaluation.best_k.get("candidate"), evaluation.operating_point
    if best is None:
        return UNDEFINED
    baseline = point.baseline_num_speculative_tokens
    return str(best) if best == baseline else f"{best} (baseline {baseline})"


def acceptance_table(ordered: Sequence[Evaluation], k: int | None) -> Table:
    """Return what each recipe costs in acceptance, at one k for all, and what it reads."""
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
    acceptance = None if k is None else evaluation.acceptance_at(k)
    if acceptance is None:
        return UNDEFINED, UNDEFINED, UNDEFINED
    return (
        valued(acceptance.candidate_rate, "rate"),
        valued(acceptance.acceptance_rate_loss, "loss"),
        length(acceptance.candidate_length.value),
    )


def length_table(ordered: Sequence[Evaluation]) -> Table:
    """Return the chart's numbers: one row for every k, one column for every recipe."""
    ks = sorted({k for evaluation in ordered for k in evaluation.num_speculative_tokens})
    return Table(
        columns=("k", "baseline", *(evaluation.name for evaluation in ordered)),
        rows=tuple((str(k), *_lengths(ordered, k)) for k in ks),
        numeric=frozenset(range(1, len(ordered) + 2)),
    )


def _lengths(ordered: Sequence[Evaluation], k: int) -> tuple[str, ...]:
    found = [evaluation.acceptance_at(k) for evaluation in ordered]
    baselines = [row.baseline_length.value for row in found if row]
    baseline = length(baselines[0]) if baselines else UNDEFINED
    return baseline, *(length(row.candidate_length.value) if row else UNDEFINED for row in found)


def pairs_table(compared: Comparison) -> Table:
    """Return one row for every pair of recipes."""
    pairs, k = compared.pairs, compared.num_speculative_tokens
    return Table(
        columns=("Recipes", "Speed, first over second", "Acceptance rate, first minus second", ""),
        rows=tuple(_pair_row(pair) for pair in pairs),
        numeric=frozenset({1, 2}),
        tones=tuple(_pair_tone(pair) for pair in pairs),
        tone_column=3,
        caption=(
            f"Paired by prompt{'' if k is None else f', acceptance at k = {k}'}. Each recipe's "
            "speed is held to its own run's baseline; the times of two runs share no blocks, so "
            "their noise adds. The intervals hold for all pairs together with 95 % confidence "
            f"(Bonferroni over {len(pairs)})."
        ),
    )


def _pair_row(pair: RecipePair) -> tuple[str, ...]:
    gap = pair.acceptance_rate_gap
    return (
        f"{pair.one} and {pair.other}",
        valued(pair.speed_ratio, "ratio"),
        valued(gap, "loss") if gap else UNDEFINED,
        {True: "different", False: "not told apart", None: UNDEFINED}[pair.is_different],
    )


def _pair_tone(pair: RecipePair) -> Tone:
    return "good" if pair.is_different else "doubt"
