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
from quantdraft.report.blocks import Table
from quantdraft.report.sections.headline import TONES


def speed_table(ordered: Sequence[Evaluation]) -> Table:
    """Return what each recipe gains, and the decision."""
    return Table.of(
        [_speed_row(evaluation) for evaluation in ordered],
        range(2, 7),
        tone_column=1,
        tones=[TONES[evaluation.verdict.decision] for evaluation in ordered],
        caption=(
            "Each draft at its own best k: the candidate's, and the baseline's where it differs. "
            "AR: autoregressive, the target alone."
        ),
    )


def _speed_row(evaluation: Evaluation) -> dict[str, str]:
    point = evaluation.operating_point
    return {
        "Recipe": evaluation.name,
        "Decision": evaluation.verdict.decision,
        "Speedup over baseline": valued(evaluation.speedup_over_baseline, "speedup"),
        "Speedup over AR": valued(evaluation.speedup_over_autoregressive, "speedup"),
        "Draft step": milliseconds(point.candidate_draft_step_ms),
        "Against the baseline's step": step_change(point.draft_latency_saving),
        "k": _best_ks(evaluation),
    }


def _best_ks(evaluation: Evaluation) -> str:
    """Return `5`, or `5 (baseline 4)` where the baseline has another k."""
    best, point = evaluation.best_k.get("candidate"), evaluation.operating_point
    if best is None:
        return UNDEFINED
    baseline = point.baseline_num_speculative_tokens
    return str(best) if best == baseline else f"{best} (baseline {baseline})"


def acceptance_table(ordered: Sequence[Evaluation], k: int | None) -> Table:
    """Return what each recipe costs in acceptance, at one k for all, and what it reads."""
    return Table.of(
        [_acceptance_row(evaluation, k) for evaluation in ordered],
        range(1, 6),
        caption=(
            f"Acceptance {'has no common k' if k is None else f'at k = {k} for all'}. "
            "Loss: baseline minus candidate acceptance rate. Ceiling: baseline bytes over "
            "candidate bytes of a draft step."
        ),
    )


def _acceptance_row(evaluation: Evaluation, k: int | None) -> dict[str, str]:
    ledger = evaluation.ledger
    found = None if k is None else evaluation.acceptance_at(k)
    return {
        "Recipe": evaluation.name,
        "Acceptance rate": valued(found.candidate_rate, "rate") if found else UNDEFINED,
        "Loss": valued(found.acceptance_rate_loss, "loss") if found else UNDEFINED,
        "τ": length(found.candidate_length.value) if found else UNDEFINED,
        "Bytes per step": num_bytes((ledger.get("candidate") or {}).get("step_bytes")),
        "Ceiling": times(ledger.get("ceiling")),
    }


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
    return Table.of(
        [_pair_row(pair) for pair in pairs],
        {1, 2},
        tones=["good" if pair.is_different else "doubt" for pair in pairs],
        tone_column=3,
        caption=(
            f"Paired by prompt{'' if k is None else f', acceptance at k = {k}'}. Each recipe's "
            "speed is held to its own run's baseline; the times of two runs share no blocks, so "
            "their noise adds. The intervals hold for all pairs together with 95 % confidence "
            f"(Bonferroni over {len(pairs)})."
        ),
    )


def _pair_row(pair: RecipePair) -> dict[str, str]:
    is_different = {True: "different", False: "not told apart", None: UNDEFINED}
    return {
        "Recipes": f"{pair.one} and {pair.other}",
        "Speed, first over second": valued(pair.speed_ratio, "ratio"),
        "Acceptance rate, first minus second": valued(pair.acceptance_rate_gap, "loss"),
        "": is_different[pair.is_different],
    }
