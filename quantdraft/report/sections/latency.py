"""Latency: what was timed, with which kernels, beside the limits of the machine."""

from __future__ import annotations

from quantdraft.record import ArmLatency, Evaluation, StepSamples
from quantdraft.record.wording import (
    UNDEFINED,
    bare_ms,
    count,
    counted,
    load_words,
    memory_not_speed,
    shorter,
    significant,
    step_change,
    title_of,
    undefined,
)
from quantdraft.report.blocks import Block, Paragraph, Section, Table
from quantdraft.report.sections.bench import (
    arms_table,
    draft_blocks,
    roofline_table,
    spread,
    target_blocks,
)
from quantdraft.report.sections.gpu import gpu_warnings

WEIGHTS = (
    "Weights / time is resident bytes over the median step: compare it with the machine's memory "
    "bandwidth."
)


def latency_section(evaluation: Evaluation) -> Section:
    """Return what was timed, with which kernels, and what was not and why."""
    latency = evaluation.latency
    blocks: list[Block] = [Paragraph(_conditions(evaluation))]
    blocks += map(Paragraph, gpu_warnings((latency, *evaluation.grid)))
    rows = [
        _step_row(arm, new_tokens, step)
        for arm in latency.arms.values()
        for new_tokens, step in sorted(arm.steps.items())
    ]
    if rows:
        blocks += [Table.of(rows, range(1, 6), caption=WEIGHTS), arms_table([latency])]
    blocks += _against_limits(evaluation)
    if latency.undefined:
        rows_undefined = tuple((arm, undefined(why)) for arm, why in latency.undefined.items())
        blocks.append(Table(("Arm", "Why it has no latency"), rows_undefined))
    return Section("Latency", tuple(blocks))


def _against_limits(evaluation: Evaluation) -> list[Block]:
    """Return the steps beside the machine's limits, and every further point that was timed."""
    latency = evaluation.latency
    blocks: list[Block] = []
    if latency.roofline is not None and latency.arms:
        blocks += [Paragraph(_saving_and_limit(evaluation)), *draft_blocks([latency])]
        blocks.append(roofline_table(latency.roofline))
    timed = [point for point in evaluation.grid if point.arms]
    if timed:
        blocks += [Paragraph("At other batch sizes and contexts:"), *draft_blocks(timed, "")]
        blocks += target_blocks(timed)
    reasons = [
        (f"batch {p.batch_size}, context {p.context_length}", arm, undefined(why))
        for p in evaluation.grid
        for arm, why in p.undefined.items()
    ]
    if reasons:
        blocks.append(Table(("Point", "Arm", "Why it has no latency"), tuple(reasons)))
    return blocks


def _saving_and_limit(evaluation: Evaluation) -> str:
    """Return the measured saving of a draft step, and the one its bytes allow."""
    latency, saving = evaluation.latency, evaluation.operating_point.draft_latency_saving
    if "candidate" not in latency.arms or saving is None:
        return "The candidate's draft step was not timed; these are the other arms'."
    figures = latency.figures("candidate")
    byte_ratio = figures.byte_ratio
    said = f"The candidate's draft step against the baseline's: {step_change(saving)}."
    if byte_ratio:
        said += f" By its bytes alone it would be {shorter(1 - 1 / byte_ratio)}."
    memory_alone = memory_not_speed("the candidate", figures.ratio, byte_ratio)
    return f"{said} {memory_alone}" if memory_alone else said


def _step_row(arm: ArmLatency, new_tokens: int, step: StepSamples) -> dict[str, str]:
    samples, middle = step.samples_ms, step.median_ms
    rate = f"{significant(arm.weight_bytes / middle / 1e6)} GB/s" if middle else UNDEFINED
    return {
        "Arm": arm.name,
        "New tokens": str(new_tokens),
        "Median ms": bare_ms(middle),
        "10–90 %": spread(samples),
        "Samples": count(len(samples)),
        "Weights / time": rate,
    }


def _conditions(evaluation: Evaluation) -> str:
    latency = evaluation.latency
    words = (
        f"{title_of(latency.engine)} engine on {latency.device}, "
        f"{counted(latency.num_threads, 'thread')}, "
        f"batch {latency.batch_size}, context {latency.context_length}."
    )
    return f"{words} {load_words(latency.load_average)}"
