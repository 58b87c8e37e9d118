"""What a page says of the card that was timed on, from records whose readings are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from quantdraft.record import Bench, GpuState, Latency
from quantdraft.report.blocks import Paragraph, Table
from quantdraft.report.sections.gpu import gpu_sections, gpu_warnings
from tests.example_evaluation import evaluation
from tests.pages import bench_document, document, render_bench
from tests.report.test_bench import bench, point

FACTS = {
    "capability": "9.0",
    "num_multiprocessors": 132,
    "memory_bytes": 84_974_239_744,
    "driver": "580.95",
    "cuda": "13.0",
    "cudnn": None,
}
REST = GpuState(0, 345, 2619, 70, 700, 35, 500, 1)
WORK = GpuState(99, 1980, 2619, 520, 700, 61, 42_000, 1)


def at(*states: GpuState) -> Latency:
    return replace(point(), device="cuda", gpu_states=states)


def on_a_gpu(*states: GpuState, **facts: Any) -> Bench:
    provenance = {"device_name": "NVIDIA H100", "gpu": FACTS | facts}
    return replace(bench(at(*states)), provenance=provenance)


def test_the_card_and_its_states_stand_in_a_folded_section() -> None:
    page = bench_document(on_a_gpu(REST, WORK, WORK, WORK))
    (section,) = (section for section in page.sections if section.title == "GPU")
    assert section.is_detail
    facts, states = section.blocks
    assert isinstance(facts, Table)
    assert isinstance(states, Table)
    assert dict(facts.rows) == {
        "Card": "NVIDIA H100",
        "Compute capability": "9.0",
        "Multiprocessors": "132",
        "Memory": "85.0 GB",
        "Driver": "580.95",
        "CUDA runtime": "13.0",
        "cuDNN": "undefined",
    }
    row = dict(zip(states.columns, states.rows[0], strict=True))
    assert row["Readings"] == "4"
    assert row["SM clock, MHz"] == "1,980 (345 to 1,980)"
    assert row["Power limit, W"] == "700"
    assert row["Utilisation, %"] == "99 (0 to 99)"
    assert gpu_warnings([at(REST, WORK)]) == []  # low clocks at rest are no throttling


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (replace(WORK, num_programs=3), "busy with other programs in 1 of 2 readings (3 programs"),
        (replace(WORK, sm_clock_mhz=1200), "SM clock fell to 1,200 MHz, from 1,980"),
        (replace(WORK, power_w=698), "at its power limit in 1 of 2 readings (698 of 700 W)"),
        (replace(WORK, temperature_c=88), "reached 88 °C"),
    ],
)
def test_a_disturbed_card_is_warned_of_on_the_page_and_in_the_terminal(state, words) -> None:
    shown = on_a_gpu(WORK, state)
    assert [words in sentence for sentence in gpu_warnings(shown.points)] == [True]
    leads = [block.text for block in bench_document(shown).lead if isinstance(block, Paragraph)]
    assert any(words in text for text in leads)
    assert words.split()[0] in render_bench(shown)
    run = evaluation()
    run = replace(run, latency=replace(run.latency, gpu_states=(WORK, state)))
    (section,) = (s for s in document(run).sections if s.title == "Latency")
    assert any(isinstance(b, Paragraph) and words in b.text for b in section.blocks)


def test_what_no_driver_told_is_undefined_and_a_cpu_has_no_such_section() -> None:
    silent = on_a_gpu(GpuState(utilization_percent=3))
    (section,) = gpu_sections(silent.points, silent.provenance)
    table = section.blocks[1]
    assert isinstance(table, Table)
    assert dict(zip(table.columns, table.rows[0], strict=True))["Power, W"] == "undefined"
    assert gpu_warnings(silent.points) == []
    assert gpu_sections([point()], {"device_name": None}) == ()
    assert all(section.title != "GPU" for section in bench_document(bench(point())).sections)
