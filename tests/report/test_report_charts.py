"""The pictures: what their specifications hold, and what the drawn ones show."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from altair.utils.schemapi import SchemaValidationError
from hypothesis import given
from hypothesis import strategies as st

from quantdraft.judge.analysis import analysed
from quantdraft.judge.compare import compare_runs
from quantdraft.judge.comparison.points import grid_points
from quantdraft.record import Evaluation, Interval
from quantdraft.report import evaluation as evaluation_page
from quantdraft.report.blocks import Chart
from quantdraft.report.charts import drawing, style
from quantdraft.report.charts.style import (
    DARK,
    HUES,
    LIGHT,
    finish,
    inline,
    near_range,
    unchecked,
)
from quantdraft.report.comparison import comparison_document
from quantdraft.report.safety import shown_text
from quantdraft.report.views.html import render
from quantdraft.report.views.markdown import FIGURES_DIR
from tests.example_evaluation import (
    ALONE_MS,
    DRAFT_MS,
    alarmed,
    evaluation,
    gridded,
    unmeasured,
    verify_ms,
    with_text,
)
from tests.pages import (
    comparison,
    document,
    require_valid_charts,
    write_comparison,
    write_report,
)

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00\x1b\u202eabc שלום"


def charts(made: Evaluation) -> dict[str, Chart]:
    return {chart.name: chart for chart in document(made).charts}


def values(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Every data row of a specification, layers included."""
    found = list(spec.get("data", {}).get("values", []))
    for layer in spec.get("layer", []):
        found += values(layer)
    return found


def test_charts_are_of_vega_lites_schema() -> None:
    runs = [gridded(), replace(evaluation(), name="b")]
    assert require_valid_charts(evaluation_page.document, analysed(gridded())) == 13
    assert require_valid_charts(comparison_document, compare_runs(runs)) > 2

    def broken() -> dict[str, Any]:
        alt = style.altair()
        return finish(alt.Chart(inline([{}])).mark_bar(color=[3]), height=9)

    assert unchecked(broken)()["mark"]["color"] == [3]
    with pytest.raises(SchemaValidationError):
        broken()


def test_every_part_of_the_report_is_drawn_where_it_was_measured() -> None:
    assert list(charts(gridded())) == [
        "speedup-by-k",
        "length-by-k",
        "round",
        "acceptance-per-position",
        "loss-by-position",
        "loss-by-response",
        "loss-by-context",
        "loss-by-domain",
        "break-even",
        "verdict-map",
        "paying-by-batch",
        "byte-ledger",
        "prompts",
    ]


def test_without_a_speed_the_acceptance_is_drawn_all_the_same() -> None:
    drawn = charts(unmeasured())
    assert {"length-by-k", "acceptance-per-position", "loss-by-domain", "prompts"} <= set(drawn)
    assert "break-even" not in drawn
    assert "verdict-map" not in drawn
    arms = {row["name"] for row in values(drawn["speedup-by-k"].spec) if "name" in row}
    assert arms == {"baseline"}  # the target and the baseline were timed, the candidate was not


def test_bands_hold_the_intervals_of_the_record() -> None:
    rows = values(charts(evaluation())["speedup-by-k"].spec)
    made = evaluation()
    for point in made.equal_k:
        ends = point.speedup_over_autoregressive
        assert ends is not None
        drawn = {
            (row["value"], row["low"], row["high"])
            for row in rows
            if row.get("name") == "candidate" and row["k"] == point.candidate_num_speculative_tokens
        }
        assert drawn == {(ends.value, ends.low, ends.high)}
    assert {r["k"] for r in rows if r.get("best") and r["name"] == "candidate"} == {5}


def test_a_round_is_its_steps_and_its_verification() -> None:
    parts = {
        (row["arm"].partition(":")[0], row["part"]): row["ms"]
        for row in values(charts(evaluation())["round"].spec)
        if "part" in row
    }
    assert parts == {
        ("autoregressive", "target pass"): ALONE_MS,
        ("baseline, k = 4", "draft steps"): 4 * DRAFT_MS["baseline"],
        ("baseline, k = 4", "target pass"): verify_ms(4),
        ("candidate, k = 4", "draft steps"): 4 * DRAFT_MS["candidate"],
        ("candidate, k = 4", "target pass"): verify_ms(4),
    }


def test_the_map_shows_every_point_and_where_speculation_stops_paying() -> None:
    section = next(s for s in document(gridded()).sections if s.title == "Batch and context")
    cells = {row["batch"]: row["verdict"] for row in values(section.blocks[0].spec)}  # type: ignore[union-attr]
    # At 1 and 8 the intervals, 1.007 to 1.073 and 0.988 to 1.053, hold the policy's 1.02.
    assert cells == {1: "inconclusive", 8: "inconclusive", 64: "no-go", 256: "undefined"}
    assert "stops paying at batch 64" in str(section.blocks[2])
    here = [row["batch"] for row in values(section.blocks[0].spec) if row["is_here"]]  # type: ignore[union-attr]
    assert here == [1]


def test_the_better_draft_by_batch_is_the_one_that_is_compared_with_the_target() -> None:
    drawn = values(charts(gridded())["paying-by-batch"].spec)
    rows = {row["batch"]: row for row in drawn if "batch" in row}
    assert list(rows) == [1, 8, 64]  # 256 was not timed
    speeds = {point.batch_size: point.speed for point in grid_points(gridded())}
    for batch, row in rows.items():
        speed = speeds[batch]
        assert speed is not None
        arms = speed.speedup_over_autoregressive, speed.baseline_speedup_over_autoregressive
        assert row["value"] == max(ends.value for ends in arms if ends is not None)
    assert "paying-by-batch" not in charts(evaluation())


def test_an_alarm_holds_at_every_point_of_the_map() -> None:
    section = next(
        s
        for s in document(replace(alarmed(), grid=gridded().grid)).sections
        if s.title == "Batch and context"
    )
    verdicts = {row["verdict"] for row in values(section.blocks[0].spec)}  # type: ignore[union-attr]
    assert verdicts == {"no-go", "undefined"}


def test_one_timed_point_is_no_map_and_says_how_to_get_one() -> None:
    section = next(s for s in document(evaluation()).sections if s.title == "Batch and context")
    assert "--batch-sizes" in str(section.blocks[0])


@pytest.mark.parametrize("made", [gridded(), unmeasured(), alarmed()], ids=["go", "none", "alarm"])
def test_pictures_draw_and_every_colour_has_a_dark_one(made: Evaluation) -> None:
    known = set(LIGHT.values()) | {"none", "transparent", None}
    for chart in document(made).charts:
        root = ET.fromstring(drawing.svg(chart.spec))
        for element in root.iter():
            assert {element.get("fill"), element.get("stroke")} <= known, chart.name
        marks = [e for e in root.iter() if "mark-" in (e.get("class") or "")]
        assert len(marks) >= 2, chart.name


def test_light_and_dark_name_the_same_colours_once() -> None:
    assert set(LIGHT) == set(DARK)
    assert len(set(LIGHT.values())) == len(LIGHT)
    assert set(HUES) <= set(LIGHT)


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(gridded(), tmp_path / name)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_figures_lie_beside_the_markdown(tmp_path: Path) -> None:
    write_report(gridded(), tmp_path)
    write_report(evaluation(), tmp_path)  # no map: its figure goes
    named = re.findall(r"\]\((figures/[^)]+)\)", (tmp_path / "report.md").read_text())
    drawn = [f"{FIGURES_DIR}/{path.name}" for path in (tmp_path / FIGURES_DIR).iterdir()]
    assert sorted(named) == sorted(drawn)
    assert "figures/verdict-map.svg" not in named
    for path in (tmp_path / FIGURES_DIR).iterdir():
        assert ET.parse(path).getroot().find("{http://www.w3.org/2000/svg}title") is not None


def test_rows_hold_everything_the_page_shows(tmp_path: Path) -> None:
    write_report(gridded(), tmp_path)
    rows = json.loads((tmp_path / "report.json").read_text())
    page = (tmp_path / "report.html").read_text()
    blocks = [block for section in rows["sections"] for block in section["blocks"]]
    kinds = {block["kind"] for block in (*rows["lead"], *blocks)}
    assert {"figures", "table", "chart", "paragraph", "equations"} <= kinds
    specs = [block["spec"] for block in blocks if block["kind"] == "chart"]
    embedded = re.findall(r'<script type="application/json">(.*?)</script>', page)
    assert [json.loads(each) for each in embedded] == specs


def test_hostile_words_are_text_in_every_view(tmp_path: Path) -> None:
    write_report(with_text(HOSTILE, HOSTILE), tmp_path)
    page = (tmp_path / "report.html").read_text()
    code = re.compile(r"^```text\n.*?^```", re.S | re.M)
    outside_code = code.sub("", (tmp_path / "report.md").read_text())
    for opening in ("<script>alert", "<img src=x"):
        assert opening not in page
        assert opening not in outside_code
    assert not re.search(r"[\x00\x1b\u202e]", page + (tmp_path / "report.md").read_text())
    scripts = re.findall(r"<script>", page)
    assert len(scripts) == 2  # the library's and the page's own
    for path in (tmp_path / FIGURES_DIR).iterdir():
        ET.parse(path)
    assert "alert(1)" in page  # it is shown, not dropped


def test_a_page_stays_small_whatever_is_written_in_it() -> None:
    page = render(document(with_text("x" * 100_000)))
    assert len(page.encode()) < 3_000_000
    assert "98,000 characters more" in page


def test_characters_that_would_steer_the_reader_are_shown_instead() -> None:
    assert shown_text("a\x00b\x1b\x85\ud800c") == "a␀b␛\ufffd\ufffdc"
    assert shown_text("\u202egnp.exe") == "<U+202E>gnp.exe"
    assert shown_text("שלום\n\tok") == "שלום\n\tok"
    assert shown_text("y" * 12, max_length=10) == "y" * 10 + "… (2 characters more)"


def test_the_policy_allows_only_the_pages_own_scripts() -> None:
    page = render(document(evaluation()))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("sha256-") == 2
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.partition("style-src")[0]
    assert page.count('"$schema": "https://vega.github.io/schema') == len(
        document(evaluation()).charts
    )


def test_the_page_reads_without_scripts() -> None:
    made = evaluation()
    page = render(document(made))
    for chart in document(made).charts:
        figure = page[page.index(f'id="chart-{chart.name}"') :].partition("</figure>")[0]
        assert "<svg" in figure
        assert 'role="img" aria-label="' in figure
        assert figure.count("<tr>") == len(chart.data.rows) + 1


def test_a_comparison_draws_every_recipe(tmp_path: Path) -> None:
    records = [evaluation("one"), evaluation("two"), unmeasured()]
    drawn = {chart.name: chart for chart in comparison(records).charts}
    assert set(drawn) == {"speedups", "pareto", "break-even", "lengths-by-k"}
    names = {row["name"] for row in values(drawn["pareto"].spec) if "name" in row}
    assert names == {"baseline", "one", "two"}  # the third has no draft step
    write_comparison(records, tmp_path)
    assert (tmp_path / FIGURES_DIR / "pareto.svg").exists()


def test_runs_of_one_name_are_told_apart() -> None:
    rows = comparison([evaluation("int4"), evaluation("int4")]).lead
    assert "int4 (2)" in str(rows)


def at_speed(name: str, speedup: float, saving: float) -> Evaluation:
    """One recipe, as fast and with a draft step as short as that."""
    made = evaluation(name)
    ends = Interval(speedup, 0.98 * speedup, 1.02 * speedup)
    step = Interval(saving, saving - 0.02, saving + 0.02)
    point = replace(made.operating_point, speedup_over_baseline=ends, draft_latency_saving=step)
    return replace(made, operating_point=point)


def test_one_far_recipe_does_not_rule_the_scale() -> None:
    near = [at_speed(name, 1 + at / 20, 0.2 + at / 20) for at, name in enumerate("abc")]
    drawn = {c.name: c for c in comparison([*near, at_speed("slow", 0.2, -9.0)]).charts}
    places = {r["name"]: r["value"] for r in values(drawn["speedups"].spec) if "name" in r}
    assert set(places) == {"a", "b", "c", "slow"}
    assert [name for name, value in places.items() if value is None] == ["slow"]
    assert "◂ 0.200×" in drawing.svg(drawn["speedups"].spec)
    for name in ("pareto", "break-even"):
        assert "slow" not in {r.get("name") for r in values(drawn[name].spec)}
        assert drawn[name].description.endswith("see the numbers: slow.")
        assert "slow" in {row[0] for row in drawn[name].data.rows}


def test_where_most_recipes_are_far_all_are_drawn() -> None:
    drawn = {c.name: c for c in comparison([at_speed("slow", 0.2, -9.0)]).charts}
    assert {r["value"] for r in values(drawn["speedups"].spec) if "value" in r} == {0.2}


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9))
def test_the_scale_holds_its_levels_and_at_least_half_of_the_values(speeds: list[float]) -> None:
    low, high = near_range(speeds, 1.0, 1.02)
    assert low <= 1.0
    assert high >= 1.02
    inside = sum(low <= speed <= high for speed in speeds)
    assert 2 * inside >= len(speeds)
