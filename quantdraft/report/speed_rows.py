"""The speed equation with the measured numbers filled in, speed over k, and the noise floor."""

from __future__ import annotations

from typing import Literal

from quantdraft.report.bench_rows import (
    bare_ms,
)
from quantdraft.report.blocks import (
    Block,
    Equation,
    Equations,
    Lines,
    Paragraph,
    Section,
    Series,
    Table,
)
from quantdraft.report.headline import at_k, missing_speed
from quantdraft.report.wording import (
    UNDEFINED,
    compared,
    length,
    milliseconds,
    percent,
    significant,
    times,
    undefined,
    valued,
)
from quantdraft.results import Evaluation, Projection, SpeedPoint

# Four digits where the reader may want to redo the division.
DIGITS = 4


def speed_section(evaluation: Evaluation) -> Section:
    """How the milliseconds per token come about, for each arm, and where they break even."""
    # A serving engine shows no steps to fill the equation with; its own section has its speeds.
    blocks: list[Block] = [] if evaluation.served else [equations(evaluation)]
    blocks.append(Paragraph(break_even(evaluation)))
    if evaluation.projection is not None:
        blocks.append(Paragraph(projection(evaluation.projection)))
    blocks += [chart for chart in (gain_chart(evaluation), speed_chart(evaluation)) if chart]
    return Section("Speed", (*blocks, Paragraph(_best_k(evaluation)), k_table(evaluation)))


def equations(evaluation: Evaluation) -> Equations:
    """Autoregressive, baseline and candidate: time of a round over tokens of a round."""
    alone = evaluation.operating_point.autoregressive_step_ms
    return Equations(
        Equation("ms per token", "k · t_d + t_v(k+1)", "τ(k)", ""),
        (
            Equation("autoregressive", _term(alone), "1", _per_token(alone)),
            _equation(evaluation, "baseline"),
            _equation(evaluation, "candidate"),
        ),
    )


def _equation(evaluation: Evaluation, arm: Literal["baseline", "candidate"]) -> Equation:
    point = evaluation.operating_point
    k = getattr(point, f"{arm}_num_speculative_tokens")
    step = _term(getattr(point, f"{arm}_draft_step_ms"))
    verify = _term(getattr(point, f"{arm}_verify_step_ms"))
    acceptance = at_k(evaluation, k)
    tau = length(getattr(acceptance, f"{arm}_length").value) if acceptance else UNDEFINED
    result = _per_token(getattr(point, f"{arm}_ms_per_token"))
    return Equation(arm, f"{k} · {step} + {verify}", tau, result, arm)


def _term(value: float | None) -> str:
    return significant(value, DIGITS) if value is not None else UNDEFINED


def _per_token(value: float | None) -> str:
    return f"{milliseconds(value, DIGITS)} per token" if value is not None else UNDEFINED


def break_even(evaluation: Evaluation) -> str:
    """What the candidate would have to reach, and what it reached."""
    point = evaluation.operating_point
    observed = at_k(evaluation, point.candidate_num_speculative_tokens)
    if point.break_even_length is None or observed is None:
        return f"Break-even acceptance: {undefined(missing_speed(evaluation))}."
    tau = observed.candidate_length.value
    side = compared(tau, point.break_even_length, "above", "below", "exactly at")
    rate = ""
    if point.break_even_rate is not None:
        rate = (
            f" (acceptance rate {percent(point.break_even_rate)}; "
            f"observed {percent(observed.candidate_rate.value)})"
        )
    return (
        f"Break-even with the baseline: the candidate needs τ = {length(point.break_even_length)}"
        f"{rate}. Observed τ = {length(tau)}: {side} break-even."
    )


def projection(projected: Projection) -> str:
    """The label first: a reader who stops early must not take it for a measurement."""
    return (
        "Projection, not a measurement, and no part of the verdict: if a draft step shrank as its "
        f"bytes do ({times(projected.ceiling)} fewer), it would take "
        f"{milliseconds(projected.candidate_draft_step_ms)}, and the candidate would run at "
        f"{times(projected.speedup_over_baseline)} of the baseline draft's speed at "
        f"k = {projected.num_speculative_tokens}. No engine reaches this; measure on a device with "
        "a kernel for the format."
    )


def _best_k(evaluation: Evaluation) -> str:
    best = evaluation.best_k
    words = [
        f"{arm} {best[arm] if best.get(arm) is not None else UNDEFINED}"
        for arm in ("baseline", "candidate")
    ]
    return f"Best k (least ms per token): {', '.join(words)}."


def k_table(evaluation: Evaluation) -> Table:
    """Both arms at the same k, for every k that was replayed."""
    points = {point.candidate_num_speculative_tokens: point for point in evaluation.equal_k}
    return Table(
        columns=(
            "k",
            "τ baseline",
            "τ candidate",
            "ms/token baseline",
            "ms/token candidate",
            "Speedup over baseline",
            "Baseline over AR",
            "Candidate over AR",
        ),
        rows=tuple(_k_row(evaluation, k, points.get(k)) for k in evaluation.num_speculative_tokens),
        numeric=frozenset(range(1, 8)),
        caption="Both arms at equal k. AR: autoregressive, the target alone.",
    )


def _k_row(evaluation: Evaluation, k: int, point: SpeedPoint | None) -> tuple[str, ...]:
    acceptance = at_k(evaluation, k)
    taus = (
        (length(acceptance.baseline_length.value), length(acceptance.candidate_length.value))
        if acceptance
        else (UNDEFINED, UNDEFINED)
    )
    if point is None:
        return (str(k), *taus, *([UNDEFINED] * 5))
    baseline = point.baseline_speedup_over_autoregressive
    candidate = point.speedup_over_autoregressive
    return (
        str(k),
        *taus,
        bare_ms(point.baseline_ms_per_token),
        bare_ms(point.candidate_ms_per_token),
        valued(point.speedup_over_baseline, "speedup"),
        times(baseline.value if baseline else None),
        times(candidate.value if candidate else None),
    )


def gain_chart(evaluation: Evaluation) -> Lines | None:
    """Speedup over the baseline draft at equal k, with intervals; None where not measured."""
    points = [point for point in evaluation.equal_k if point.speedup_over_baseline]
    ends = [point.speedup_over_baseline for point in points if point.speedup_over_baseline]
    ks = [float(point.candidate_num_speculative_tokens) for point in points]
    if not ends:
        return None
    series = Series(
        "candidate",
        tuple((k, end.value) for k, end in zip(ks, ends, strict=True)),
        "candidate",
        tuple((end.low, end.high) for end in ends),
    )
    return Lines(
        title="Speedup over the baseline draft, at equal k",
        description="Bars are 95 % intervals.",
        series=(series,),
        x_title="k, tokens proposed a round",
        unit="×",
        reference=1.0,
        reference_name="baseline draft",
    )


def speed_chart(evaluation: Evaluation) -> Lines | None:
    """Speedup over the target alone, by k; None where it was not measured."""
    baseline = _speed_points(evaluation, "baseline_speedup_over_autoregressive")
    candidate = _speed_points(evaluation, "speedup_over_autoregressive")
    if not baseline and not candidate:
        return None
    best = evaluation.best_k
    return Lines(
        title="Speedup over autoregressive, by k",
        description="Rings mark each arm's best k.",
        series=(
            Series("baseline", baseline, "baseline", marked_x=best.get("baseline")),
            Series("candidate", candidate, "candidate", marked_x=best.get("candidate")),
        ),
        x_title="k, tokens proposed a round",
        unit="×",
        reference=1.0,
        reference_name="target alone",
    )


def _speed_points(evaluation: Evaluation, field: str) -> tuple[tuple[float, float], ...]:
    found = (
        (float(point.candidate_num_speculative_tokens), getattr(point, field))
        for point in evaluation.equal_k
    )
    return tuple((k, ends.value) for k, ends in found if ends is not None)


def noise_section(evaluation: Evaluation) -> Section:
    """The control arm: the baseline timed against itself."""
    point = evaluation.operating_point
    if point.control_speedup is None:
        why = evaluation.latency.undefined.get("control", "the control arm was not timed")
        return Section("Noise floor", (Paragraph(f"Control arm: {undefined(why)}."),))
    rows = [("baseline against itself", valued(point.control_speedup, "speedup"))]
    rows.append(("candidate against baseline", valued(point.speedup_over_baseline, "speedup")))
    return Section(
        "Noise floor",
        (
            Paragraph(_above_noise(point)),
            Table(("Arms", "Speedup (95 % interval)"), tuple(rows), frozenset({1})),
        ),
    )


def _above_noise(point: SpeedPoint) -> str:
    control, speedup = point.control_speedup, point.speedup_over_baseline
    if control is None or speedup is None:
        return (
            "The candidate's speedup is undefined, so there is nothing to hold against the noise."
        )
    is_apart = speedup.low > control.high or speedup.high < control.low
    words = "stands clear of" if is_apart else "overlaps"
    return (
        f"The candidate's interval {words} what the same measurement finds between two equal arms."
    )
