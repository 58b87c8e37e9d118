"""The card that was timed on, and its state around every point; warnings where it was disturbed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from quantdraft.record import GpuState, Latency
from quantdraft.record.wording import UNDEFINED, counted, num_bytes, significant
from quantdraft.report.blocks import Block, Section, Table

TITLE = "GPU"
AT_WORK_PERCENT = 50.0  # of utilisation: the clocks of a card at rest say nothing of a timing
MIN_CLOCK_SHARE = 0.9  # of the highest clock at work, below which the card was slowed down
POWER_SHARE = 0.97  # of the power limit, from which the card lowers its clocks
HOT_C = 85.0
CAPTION = (
    "Median, and the least and most of all readings: before and after the timing of each load. "
    "Utilisation is that of the last second, this program's own work included."
)
FACTS = {
    "capability": "Compute capability",
    "num_multiprocessors": "Multiprocessors",
    "memory_bytes": "Memory",
    "driver": "Driver",
    "cuda": "CUDA runtime",
    "cudnn": "cuDNN",
}


def gpu_sections(points: Sequence[Latency], provenance: dict[str, Any]) -> tuple[Section, ...]:
    """Return the card's facts and its states, folded; nothing where no GPU was used."""
    blocks: list[Block] = [
        table for table in (facts_table(provenance), states_table(points)) if table is not None
    ]
    return (Section(TITLE, tuple(blocks), is_detail=True),) if blocks else ()


def facts_table(provenance: dict[str, Any]) -> Table | None:
    """Return what does not change of a card; None where the record says nothing of one."""
    facts = provenance.get("gpu")
    if not isinstance(facts, dict) or not facts:
        return None
    shown = {"Card": provenance.get("device_name")}
    shown |= {words: facts.get(key) for key, words in FACTS.items()}
    if isinstance(shown["Memory"], int | float):
        shown["Memory"] = num_bytes(shown["Memory"])
    rows = tuple((key, UNDEFINED if v is None else str(v)) for key, v in shown.items())
    return Table(("Fact", "Value"), rows)


def states_table(points: Sequence[Latency]) -> Table | None:
    """Return one row for each point whose card was read; None without any."""
    rows = [
        {
            "Batch": str(point.batch_size),
            "Context": str(point.context_length),
            "Readings": str(len(point.gpu_states)),
            "Utilisation, %": _range(s.utilization_percent for s in point.gpu_states),
            "SM clock, MHz": _range(s.sm_clock_mhz for s in point.gpu_states),
            "Memory clock, MHz": _range(s.memory_clock_mhz for s in point.gpu_states),
            "Power, W": _range(s.power_w for s in point.gpu_states),
            "Power limit, W": _range(s.power_limit_w for s in point.gpu_states),
            "Temperature, °C": _range(s.temperature_c for s in point.gpu_states),
            "Memory in use, MiB": _range(s.memory_used_mib for s in point.gpu_states),
            "Programs": _range(s.num_programs for s in point.gpu_states),
        }
        for point in points
        if point.gpu_states
    ]
    return Table.of(rows, range(len(rows[0])), caption=CAPTION) if rows else None


def _range(values: Iterable[float | None]) -> str:
    """Return the median and the ends of the known values."""
    known = [value for value in values if value is not None]
    if not known:
        return UNDEFINED
    low, middle, high = (f"{value:,.0f}" for value in (min(known), median(known), max(known)))
    return middle if low == high else f"{middle} ({low} to {high})"


def gpu_warnings(points: Sequence[Latency]) -> list[str]:
    """Return a sentence for each way in which the card was disturbed; none for a quiet one."""
    states = [state for point in points for state in point.gpu_states]
    said = (_busy(states), _slowed(states), _at_power_limit(states), _hot(states))
    return [sentence for sentence in said if sentence is not None]


def _busy(states: Sequence[GpuState]) -> str | None:
    """Return that other programs computed there too; utilisation cannot tell them from this one."""
    known = [state.num_programs for state in states if state.num_programs is not None]
    shared = [number for number in known if number > 1]
    if not shared:
        return None
    return (
        f"The GPU was busy with other programs in {len(shared)} of "
        f"{counted(len(known), 'reading')} ({max(shared)} programs at once): measure again alone."
    )


def _slowed(states: Sequence[GpuState]) -> str | None:
    clocks = [
        state.sm_clock_mhz
        for state in states
        if state.sm_clock_mhz is not None
        and (state.utilization_percent is None or state.utilization_percent >= AT_WORK_PERCENT)
    ]
    if not clocks or min(clocks) >= MIN_CLOCK_SHARE * max(clocks):
        return None
    return (
        f"The GPU's SM clock fell to {min(clocks):,.0f} MHz, from {max(clocks):,.0f}: it was "
        "throttled. Arms take turns, so ratios hold; milliseconds of different points may not "
        "compare."
    )


def _at_power_limit(states: Sequence[GpuState]) -> str | None:
    known = [(s.power_w, s.power_limit_w) for s in states if s.power_w and s.power_limit_w]
    over = [(power, limit) for power, limit in known if power >= POWER_SHARE * limit]
    if not over:
        return None
    power, limit = max(over)
    return (
        f"The GPU was at its power limit in {len(over)} of {counted(len(known), 'reading')} "
        f"({significant(power)} of {significant(limit)} W): it lowers its clocks there."
    )


def _hot(states: Sequence[GpuState]) -> str | None:
    hottest = max((s.temperature_c for s in states if s.temperature_c is not None), default=0.0)
    if hottest < HOT_C:
        return None
    return f"The GPU reached {hottest:.0f} °C, where it may lower its clocks."
