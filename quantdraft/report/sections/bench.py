"""Step times over batch, context and new tokens, as sections of a page.

The roofline's table and the condition's line are the evaluation report's too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import quantiles

from quantdraft.record import ArmLatency, Bench, Latency, Roofline
from quantdraft.record.wording import (
    UNDEFINED,
    bare_ms,
    counted,
    memory_not_speed,
    num_bytes,
    percent,
    significant,
    times,
    title_of,
    undefined,
    valued,
)
from quantdraft.report.blocks import Block, Document, Paragraph, Section, Table
from quantdraft.report.charts.steps import (
    DraftStep,
    TargetStep,
    draft_steps_chart,
    target_steps_chart,
)
from quantdraft.report.charts.style import unchecked
from quantdraft.report.sections.gpu import gpu_sections, gpu_warnings

TARGET = "target"
MAX_PLACES = 3  # named one by one
RANDOM_WEIGHTS = (
    "Random weights in a published model's shape: this is latency only. Whether the draft is "
    "accepted is in the weights, so nothing here says that it pays."
)
LIMITS = (
    "Ratio is baseline over arm, the median over timing blocks with its 95 % interval; above 1 is "
    "faster. Bytes are what a step reads as the checkpoint stores it, keys and values included. "
    "Limit is the ratio of the bytes: what the ratio comes to where memory alone decides. A ratio "
    "above its limit says that the baseline is further from the memory's limit than the arm."
)


@unchecked
def bench_document(bench: Bench) -> Document:
    """Return the whole page of a bench."""
    lead: list[Block] = [Paragraph(RANDOM_WEIGHTS)] if bench.has_random_weights else []
    lead += map(Paragraph, gpu_warnings(bench.points))
    sections = [
        Section(
            "Draft step, one new token",
            (
                *_draft_chart(bench.points),
                *draft_blocks(bench.points),
                *map(Paragraph, memory_alone(bench.points)),
            ),
        ),
        Section(
            "Target step by new tokens",
            (*_target_chart(bench.points), *target_blocks(bench.points)),
        ),
        Section("What computes", (arms_table(bench.points),)),
        *_roofline_sections(bench.points),
        *_left_out(bench.points),
        *gpu_sections(bench.points, bench.provenance),
    ]
    return Document(
        title=f"Step times of {bench.name}",
        subtitle=_conditions(bench),
        banner=None,
        lead=tuple(lead),
        sections=tuple(section for section in sections if section.blocks),
        footer=f"{bench.created} · record: bench.json",
    )


def _draft_chart(points: Sequence[Latency]) -> tuple[Block, ...]:
    """Return every draft's step against the baseline's; empty where there is no ratio."""
    steps = []
    for point in points:
        where = f" at {place(point)}" if len(points) > 1 else ""
        for arm in point.arms:
            found = None if arm in (TARGET, "baseline") else point.figures(arm)
            if found is not None and found.ratio is not None:
                steps.append(DraftStep(f"{arm}{where}", arm, found.ratio, found.byte_ratio))
    return (draft_steps_chart(steps),) if steps else ()


def draft_blocks(points: Sequence[Latency], caption: str = LIMITS) -> tuple[Block, ...]:
    """Return one row for every draft and point; empty where no draft was timed."""
    rows = [
        _draft_row(point, arm)
        for point in points
        for arm in point.arms.values()
        if arm.name != TARGET
    ]
    if not rows:
        return ()
    last = list(rows[0])[-1]
    if all(row[last] == UNDEFINED for row in rows):  # an evaluation does not time heads
        rows = [{title: cell for title, cell in row.items() if title != last} for row in rows]
    numeric = [at for at, title in enumerate(rows[0]) if title != "Arm"]
    return (Table.of(rows, numeric, caption=caption),)


def memory_alone(points: Sequence[Latency]) -> list[str]:
    """Return a sentence for each draft and point where fewer bytes made a slower step."""
    said = []
    for point in points:
        where = "" if len(points) == 1 else f" at {place(point)}"
        for name in point.arms:
            if name not in {TARGET, "baseline", "control"}:
                found = point.figures(name)
                said.append(memory_not_speed(f"{name}{where}", found.ratio, found.byte_ratio))
    return [sentence for sentence in said if sentence is not None]


def _draft_row(point: Latency, arm: ArmLatency) -> dict[str, str]:
    figures = point.figures(arm.name)
    ratio = "1" if arm.name == "baseline" else valued(figures.ratio, "ratio")
    return {
        "Batch": str(point.batch_size),
        "Context": str(point.context_length),
        "Arm": arm.name,
        "Median ms": bare_ms(figures.median_ms),
        "10–90 %": spread(arm.steps[1].samples_ms if 1 in arm.steps else ()),
        "Ratio to baseline": ratio,
        "Limit": times(figures.byte_ratio),
        "Bytes": num_bytes(arm.step_bytes),
        "GB/s": significant(figures.bytes_per_s / 1e9) if figures.bytes_per_s else UNDEFINED,
        "Of copy bandwidth": percent(figures.bandwidth_fraction),
        "Head, of bytes": percent(figures.head_bytes_share),
        "Head, of time": percent(figures.head_time_share),
    }


def _target_chart(points: Sequence[Latency]) -> tuple[Block, ...]:
    """Return the target's pass by its new tokens; empty where no two widths were timed."""
    steps = []
    for point in points:
        timed = point.arms[TARGET].steps if TARGET in point.arms else {}
        medians = {m: step.median_ms for m, step in timed.items()}
        known = {m: ms for m, ms in medians.items() if ms is not None}
        if 1 in known and len(known) > 1:
            for m, ms in sorted(known.items()):
                steps.append(TargetStep(place(point), m, ms, ms / known[1]))
    return (target_steps_chart(steps),) if steps else ()


def target_blocks(points: Sequence[Latency]) -> tuple[Block, ...]:
    """Return the target's median ms by its number of new tokens m, one row for every point."""
    timed = [point for point in points if TARGET in point.arms]
    widths = sorted({width for point in timed for width in point.arms[TARGET].steps})
    if not widths:
        return ()
    return (
        Table(
            columns=("Batch", "Context", *(f"m = {width}" for width in widths)),
            rows=tuple(_target_row(point, widths) for point in timed),
            numeric=frozenset(range(len(widths) + 2)),
            caption="Median ms of one target pass over m new tokens a row: t_v(m).",
        ),
    )


def _target_row(point: Latency, widths: Sequence[int]) -> tuple[str, ...]:
    steps = point.arms[TARGET].steps
    cells = (bare_ms(steps[w].median_ms if w in steps else None) for w in widths)
    return (str(point.batch_size), str(point.context_length), *cells)


def arms_table(points: Sequence[Latency]) -> Table:
    """Return kernels, float type and mode of every arm; another line where a batch changed them."""
    rows = dict.fromkeys(_arm_row(arm) for point in points for arm in point.arms.values())
    return Table(
        columns=("Arm", "Kernels", "Computes in", "Mode", "Runtime", "Resident weights"),
        rows=tuple(rows),
        numeric=frozenset({5}),
    )


def _arm_row(arm: ArmLatency) -> tuple[str, ...]:
    return (
        arm.name,
        ", ".join(name.replace("+", " + ") for name in arm.kernels) or "not named",
        arm.compute_dtype,
        arm.mode,
        arm.runtime,
        num_bytes(arm.weight_bytes),
    )


def _roofline_sections(points: Iterable[Latency]) -> tuple[Section, ...]:
    """Return what the machine reached at best in the same run; nothing where not measured."""
    found = next((point.roofline for point in points if point.roofline), None)
    return () if found is None else (Section("What this machine can do", (roofline_table(found),)),)


def roofline_table(roofline: Roofline) -> Table:
    """Return the measured bandwidths and matrix rates."""
    rows = [
        ("Copy, bytes read and written", _rate(roofline.copy_bytes_per_s)),
        ("Read alone", _rate(roofline.read_bytes_per_s)),
    ]
    rows += [
        (f"Matrix product, {name}", f"{significant(rate / 1e9)} GFLOP/s")
        for name, rate in roofline.matrix_flops_per_s.items()
    ]
    return Table(("Limit", "Measured at best"), tuple(rows), frozenset({1}))


def spread(samples: Sequence[float]) -> str:
    """Return the middle 80 % of the samples."""
    if len(samples) < 10:
        return undefined("under 10 samples")
    tenths = quantiles(samples, n=10)
    return f"{significant(tenths[0])} to {significant(tenths[-1])}"


def place(point: Latency) -> str:
    """Return batch and context in short: "4 × 512"."""
    return f"{point.batch_size} × {point.context_length}"


def _left_out(points: Sequence[Latency]) -> tuple[Section, ...]:
    arms: dict[str, dict[str, None]] = {}  # by reason, in order
    places: dict[str, dict[str, None]] = {}
    for point in points:
        for arm, why in point.undefined.items():
            arms.setdefault(why, {})[arm] = None
            where = f"batch {point.batch_size}, context {point.context_length}"
            places.setdefault(why, {})[where] = None
    rows = tuple(
        (", ".join(names), _where(list(places[why]), len(points)), undefined(why))
        for why, names in arms.items()
    )
    return (Section("Left out", (Table(("Arms", "Where", "Why"), rows),)),) if rows else ()


def _where(places: Sequence[str], num_points: int) -> str:
    if len(places) == num_points:
        return "every point"
    more = f" and {len(places) - 1} larger" if len(places) > MAX_PLACES else ""
    return "; ".join(places[: None if not more else 1]) + more


def _conditions(bench: Bench) -> str:
    if not bench.points:
        return "No point was measured."
    first = bench.points[0]
    loads = [load for point in bench.points if point.load_average for load in point.load_average]
    load = f"load average up to {max(loads):.2f}" if loads else "load average not known"
    return (
        f"{title_of(first.engine)} engine on {first.device}, "
        f"{counted(first.num_threads, 'thread')}, {load}; "
        "arms timed in turns, in shuffled blocks"
    )


def _rate(bytes_per_s: float) -> str:
    return f"{significant(bytes_per_s / 1e9)} GB/s"
