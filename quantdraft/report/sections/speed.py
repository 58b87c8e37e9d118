"""Speed over k, the speed equation with the measured numbers filled in, and the noise floor."""

from __future__ import annotations

from quantdraft.record import ARMS, Arm, Evaluation, Projection, SpeedPoint
from quantdraft.record.wording import (
    UNDEFINED,
    bare_ms,
    compared,
    length,
    milliseconds,
    percent,
    significant,
    times,
    undefined,
    valued,
)
from quantdraft.report.blocks import Block, Chart, Equation, Equations, Paragraph, Section, Table
from quantdraft.report.charts.curves import LineByK, curve_table, curves_spec
from quantdraft.report.sections.headline import missing_speed

# Four digits where the reader may want to redo the division.
DIGITS = 4


def speed_section(evaluation: Evaluation) -> Section:
    """Return speedup and tokens a round against k, each arm's best k marked, and the numbers."""
    blocks: list[Block] = [Paragraph(_best_k(evaluation))]
    chart = speed_chart(evaluation)
    if chart is None:
        why = undefined(missing_speed(evaluation))
        blocks.append(Paragraph(f"Speedup against k: {why}. Acceptance by k was measured:"))
    else:
        blocks.append(chart)
    if evaluation.acceptance:
        blocks.append(length_chart(evaluation))
    return Section("Speedup against k", (*blocks, k_table(evaluation)))


def equations(evaluation: Evaluation) -> Equations:
    """Return the time of a round over its tokens: autoregressive, baseline and candidate."""
    alone = evaluation.operating_point.autoregressive_step_ms
    return Equations(
        Equation("ms per token", "k · t_d + t_v(k+1)", "τ(k)", ""),
        (
            Equation("autoregressive", _term(alone), "1", _per_token(alone)),
            _equation(evaluation, "baseline"),
            _equation(evaluation, "candidate"),
        ),
    )


def _equation(evaluation: Evaluation, arm: Arm) -> Equation:
    speed = evaluation.operating_point.of(arm)
    k = speed.num_speculative_tokens
    acceptance = evaluation.acceptance_at(k)
    tau = length(acceptance.of(arm).length.value) if acceptance else UNDEFINED
    terms = f"{k} · {_term(speed.draft_step_ms)} + {_term(speed.verify_step_ms)}"
    return Equation(arm, terms, tau, _per_token(speed.ms_per_token), arm)


def _term(value: float | None) -> str:
    return significant(value, DIGITS) if value is not None else UNDEFINED


def _per_token(value: float | None) -> str:
    return f"{milliseconds(value, DIGITS)} per token" if value is not None else UNDEFINED


def break_even(evaluation: Evaluation) -> str:
    """Return what the candidate would have to reach, and what it reached."""
    point = evaluation.operating_point
    observed = evaluation.acceptance_at(point.candidate_num_speculative_tokens)
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
        f"Break-even with the baseline{_of_its_k(point)}: at k = "
        f"{point.candidate_num_speculative_tokens} the candidate needs τ = "
        f"{length(point.break_even_length)}{rate}. Observed τ = {length(tau)}: {side} break-even."
    )


def _of_its_k(point: SpeedPoint) -> str:
    """Return the baseline's k, where it is another than the candidate's."""
    k = point.baseline_num_speculative_tokens
    return "" if k == point.candidate_num_speculative_tokens else f" at its k = {k}"


def projection(projected: Projection) -> str:
    """Return the projected speed, labelled first: it must not be taken for a measurement."""
    return (
        "Projection, not a measurement, and no part of the verdict: if a draft step shrank as its "
        f"bytes do ({times(projected.ceiling)} fewer), it would take "
        f"{milliseconds(projected.candidate_draft_step_ms)}, and the candidate would run at "
        f"{times(projected.speedup_over_baseline)} of the baseline draft's speed, both at "
        f"k = {projected.num_speculative_tokens}. No engine reaches this; measure on a device with "
        "a kernel for the format."
    )


def _best_k(evaluation: Evaluation) -> str:
    best = evaluation.best_k
    words = [f"{arm} {best[arm] if best.get(arm) is not None else UNDEFINED}" for arm in ARMS]
    return f"Best k (least ms per token): {', '.join(words)}."


def k_table(evaluation: Evaluation) -> Table:
    """Return both arms at the same k, for every k that was replayed."""
    points = {point.candidate_num_speculative_tokens: point for point in evaluation.equal_k}
    return Table.of(
        [_k_row(evaluation, k, points.get(k)) for k in evaluation.num_speculative_tokens],
        range(1, 8),
        caption="Both arms at equal k. AR: autoregressive, the target alone.",
    )


def _k_row(evaluation: Evaluation, k: int, point: SpeedPoint | None) -> dict[str, str]:
    acceptance = evaluation.acceptance_at(k)
    baseline = point.baseline_speedup_over_autoregressive if point else None
    candidate = point.speedup_over_autoregressive if point else None
    return {
        "k": str(k),
        "τ baseline": length(acceptance.baseline_length.value) if acceptance else UNDEFINED,
        "τ candidate": length(acceptance.candidate_length.value) if acceptance else UNDEFINED,
        "ms/token baseline": bare_ms(point.baseline_ms_per_token if point else None),
        "ms/token candidate": bare_ms(point.candidate_ms_per_token if point else None),
        "Speedup over baseline": valued(point.speedup_over_baseline if point else None, "speedup"),
        "Baseline over AR": times(baseline.value if baseline else None),
        "Candidate over AR": times(candidate.value if candidate else None),
    }


def speed_chart(evaluation: Evaluation) -> Chart | None:
    """Return the speedup over the target alone by k, with bands; None where not measured."""
    curves = [_over_autoregressive(evaluation, arm) for arm in ARMS]
    if not any(curve.points for curve in curves):
        return None
    title = "speedup over autoregressive"
    return Chart(
        name="speedup-by-k",
        title="Speedup over the target alone, by k",
        description="Bands are 95 % intervals, rings mark each arm's best k.",
        spec=curves_spec(curves, title, "speedup", reference=(1.0, "target alone")),
        data=curve_table(curves, "Speedup", "speedup"),
    )


def _over_autoregressive(evaluation: Evaluation, arm: Arm) -> LineByK:
    found = (
        (point.candidate_num_speculative_tokens, point.of(arm).speedup_over_autoregressive)
        for point in evaluation.equal_k
    )
    return LineByK(arm, [(k, e) for k, e in found if e is not None], evaluation.best_k.get(arm))


def length_chart(evaluation: Evaluation) -> Chart:
    """Return τ by k, both arms, with bands."""
    curves = [
        LineByK(
            arm,
            [(row.num_speculative_tokens, row.of(arm).length) for row in evaluation.acceptance],
            evaluation.best_k.get(arm),
        )
        for arm in ARMS
    ]
    return Chart(
        name="length-by-k",
        title="Tokens a round τ, by k",
        description="Mean acceptance length, bonus token included, with 95 % intervals.",
        spec=curves_spec(curves, "tokens a round", "length"),
        data=curve_table(curves, "τ", "length"),
    )


def noise_section(evaluation: Evaluation) -> Section:
    """Return the control arm: the baseline timed against itself."""
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
