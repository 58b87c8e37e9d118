"""The report against a record whose every number is known."""

from dataclasses import replace
from html import escape
from pathlib import Path

import pytest

from quantdraft.errors import OptionError, OutputExistsError, PairingError
from quantdraft.record import Check, Evaluation, Interval, LiveCheck, Roofline, write_evaluation
from quantdraft.record.wording import (
    change_points,
    count,
    interval,
    metric,
    milliseconds,
    num_bytes,
    pace,
    percent,
    rate_change,
    significant,
    step_change,
    times,
)
from quantdraft.report import render_comparison
from quantdraft.report.blocks import Section, Table
from quantdraft.report.sections.headline import sentence
from quantdraft.report.views.markdown import render as render_markdown
from quantdraft.workflows.compare import compare
from tests.example_evaluation import (
    WHY_UNDEFINED,
    acceptance,
    alarmed,
    evaluation,
    speed,
    unmeasured,
)
from tests.pages import comparison, document, render_terminal, write_comparison, write_report


def pages(made: Evaluation, directory: Path) -> tuple[str, str]:
    write_report(made, directory)
    return (directory / "report.md").read_text(), (directory / "report.html").read_text()


def cells(markdown: str, first_cell: str) -> list[str]:
    """The first table row that starts with this cell."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines()]
    return next(row for row in rows if row and row[0] == first_cell)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (percent(0.612), "61.2 %"),
        (percent(None), "undefined"),
        (percent(-0.0001), "0.0 %"),
        (times(1.0432), "1.043×"),
        (milliseconds(2.314), "2.31 ms"),
        (milliseconds(0.0412), "0.0412 ms"),
        (milliseconds(None), "undefined"),
        (significant(1234.5), "1,234"),
        (count(1234.0), "1,234"),
        (count(3119.12), "3,119.1"),
        (num_bytes(6_144_000), "6.14 MB"),
        (num_bytes(512), "512 B"),
        (change_points(-0.012), "−1.2 points"),
        (change_points(0.012), "+1.2 points"),
        (change_points(0.0), "0.0 points"),
        (metric(0.016, "acceptance_rate_loss"), "1.6 points"),
        (metric(0.6, "candidate_acceptance_rate"), "60.0 %"),
        (metric(1.02, "speedup_over_baseline"), "1.020×"),
        (interval(Interval(0.5, 0.48, 0.522), "rate"), "48.0 to 52.2 %"),
    ],
)
def test_numbers_are_written_one_way(written: str, expected: str) -> None:
    assert written == expected


def test_words_follow_the_sign() -> None:
    assert rate_change(0.012) == "1.2 points lower than the baseline"
    assert rate_change(-0.012) == "1.2 points higher than the baseline"
    assert rate_change(0.0) == "equal to the baseline"
    assert pace(1.043, "it") == "4.3 % faster than it"
    assert pace(0.9, "it") == "10.0 % slower than it"
    assert pace(1.0, "it") == "as fast as it"
    assert pace(2.25, "it") == "2.2 times as fast as it"


@pytest.mark.parametrize(
    ("saving", "words"),
    [
        (Interval(0.38, 0.37, 0.39), "38.0 % shorter (37.0 to 39.0 %)"),
        (Interval(-0.10, -0.12, -0.08), "10.0 % longer (8.0 to 12.0 %)"),
        (Interval(0.01, -0.02, 0.04), "1.0 % shorter (2.0 % longer to 4.0 % shorter)"),
        (Interval(-2.448, -2.5, -2.4), "3.45 times as long (3.40 to 3.50)"),
        (Interval(0.0, 0.0, 0.0), "as long (0.0 to 0.0 %)"),
        (None, "undefined"),
    ],
)
def test_a_longer_step_is_no_negative_saving(saving: Interval | None, words: str) -> None:
    assert step_change(saving) == words


def test_no_page_shows_a_saving_of_less_than_minus_hundred_percent() -> None:
    made = evaluation("int8")
    slow = replace(made.operating_point, draft_latency_saving=Interval(-2.448, -2.5, -2.4))
    slow_ = replace(made, operating_point=slow)
    for built in (document(slow_), comparison([slow_])):
        text = render_markdown(built)
        assert "244.8" not in text
        assert "3.45 times as long" in text


def test_markdown_numbers_come_from_the_record(tmp_path: Path) -> None:
    markdown, _ = pages(evaluation(), tmp_path)
    row, point = acceptance(4), speed(4, 4)
    assert point.speedup_over_baseline is not None
    assert f"**{times(point.speedup_over_baseline.value)}**" in markdown
    assert point.control_speedup is not None
    noise = cells(markdown, "Control")
    assert noise[1:] == ["1.001×", "baseline against itself, 0.993× to 1.009×"]

    deciding = markdown.splitlines()
    check = next(line for line in deciding if "| decides |" in line)
    assert times(point.speedup_over_baseline.low) in check
    assert times(point.speedup_over_baseline.high) in check
    assert "| pass |" in check
    assert "≥ 1.020×" in check

    tau = row.candidate_length.value
    assert point.candidate_ms_per_token is not None
    equation = f"(4 · 0.5031 + 5.868) / {tau:.3f} = {point.candidate_ms_per_token:.3f} ms per token"
    assert equation in markdown
    assert "(5.620) / 1 = 5.620 ms per token" in markdown
    assert "the candidate needs τ = 2.404 (acceptance rate 51.2 %" in markdown
    assert f"Observed τ = {tau:.3f}: above break-even" in markdown
    assert "baseline 4, candidate 5" in markdown


def test_acceptance_per_position_is_kept_over_rounds(tmp_path: Path) -> None:
    markdown, _ = pages(evaluation(), tmp_path)
    # Acceptance is independent, 0.742 and 0.731: position j is kept with probability keep^j.
    table = markdown[markdown.index("| Position |") :]
    for position in range(1, 5):
        row = cells(table, str(position))
        assert row[1:3] == [percent(0.742**position), percent(0.731**position)]
        assert row[4:6] == ["74.2 %", "73.1 %"]


def test_latency_shows_the_median_and_its_kernels(tmp_path: Path) -> None:
    markdown, _ = pages(evaluation(), tmp_path)
    row = cells(markdown[markdown.index("## Latency") :], "candidate")
    # The factors of the 21 samples are symmetric about 1, so the median is the step itself.
    assert row[1:3] == ["1", "0.503"]
    assert row[4:] == ["21", f"{significant(4_194_304 / 0.5031 / 1e6)} GB/s"]
    row = cells(markdown[markdown.index("| Arm | Kernels |") :], "candidate")
    assert row == [
        "candidate",
        "linear_dynamic",
        "int8",
        "eager",
        "transformers modules",
        "4.19 MB",
    ]


def test_first_lines_hold_the_verdict(tmp_path: Path) -> None:
    for made, word in ((evaluation(), "GO"), (alarmed(), "NO-GO"), (unmeasured(), "INCONCLUSIVE")):
        first = render_terminal(made).splitlines()
        assert first[0].replace(" ", "") == word
        why = sentence(made.verdict)
        assert why in " ".join(first[2:5])
        assert f"**{why}**" in pages(made, tmp_path)[0].splitlines()[4]
        markdown, html = pages(made, tmp_path)
        assert markdown.splitlines()[2] == f"## {word}"
        assert f'<p class="word">{word}</p>' in html.partition("</header>")[0]


def test_first_screen_says_what_decided_and_what_would_settle(tmp_path: Path) -> None:
    _, html = pages(unmeasured(), tmp_path)
    header = html.partition("</header>")[0]
    assert "a GPU of compute capability" in header
    assert "Speedup over the baseline draft" in header
    assert header.count(WHY_UNDEFINED) == 1  # once, beside the check that has no number
    _, html = pages(alarmed(), tmp_path)
    assert "acceptance-collapsed" in html.partition("</header>")[0]
    assert 'role="alert"' in html.partition("</header>")[0]


def test_undefined_stays_undefined_with_its_reason(tmp_path: Path) -> None:
    markdown, _ = pages(unmeasured(), tmp_path)
    for label in ("Speedup over autoregressive", "Draft step"):
        row = cells(markdown, label)
        assert row[1:] == ["undefined", "not measured here"]
    row = cells(markdown, "Speedup over the baseline draft")
    assert row[2] == f"undefined: {WHY_UNDEFINED}"
    assert f"| candidate | undefined: {WHY_UNDEFINED} |" in markdown
    assert "(4 · undefined + undefined) / 2.942 = undefined" in markdown
    assert f"Break-even acceptance: undefined: candidate: {WHY_UNDEFINED}" in markdown
    assert "candidate undefined" in markdown  # the best k
    absent = ["undefined", "undefined", "undefined: no token was asked for"]
    assert cells(markdown, "empty")[3:] == absent  # a domain without proposals
    assert cells(markdown, "Largest speedup over the baseline")[1] == "undefined"


def test_markdown_cells_cannot_break_the_table(tmp_path: Path) -> None:
    made = evaluation()
    prompts = (replace(made.prompts[0], prompt_id="a|b\nc"), *made.prompts[1:])
    domains = (replace(made.by_domain[0], name="x|y"),)
    markdown, _ = pages(replace(made, prompts=prompts, by_domain=domains), tmp_path)
    assert "x\\|y" in markdown


def test_every_view_shows_the_same_rows(tmp_path: Path) -> None:
    made = evaluation()
    markdown, html = pages(made, tmp_path)
    for section in document(made).sections:
        for block in section.blocks:
            if isinstance(block, Table):
                for cell in block.rows[0]:
                    flat = escape(cell).replace(" ", "")
                    assert flat in html.replace("\u00a0", "").replace(" ", "")
                    assert cell.replace(" ", "") in markdown.replace(" ", "").replace("\\", "")


def test_live_rounds_are_compared_prompt_by_prompt() -> None:
    text = render_terminal(evaluation())
    # The candidate's second prompt took 41 rounds live and 42 replayed.
    line = next(line for line in text.splitlines() if line.startswith("candidate  4"))
    assert "1 of 2" in line
    sampled = LiveCheck(4, "candidate", ("a",), (10.0,), (10.4,), 0, 0, 0, is_expectation=True)
    text = render_terminal(replace(evaluation(), live=(sampled,)))
    assert "in the mean" in text
    assert "unproven" in render_terminal(replace(evaluation(), live=()))


def test_empty_parts_are_said_not_drawn() -> None:
    made = replace(evaluation(), by_position=(), by_context=(), by_domain=(), ledger={}, prompts=())
    text = render_terminal(made)
    assert "Early or late: undefined" in text
    assert "Bytes per draft step: undefined" in text


def faster(name: str, value: float) -> Evaluation:
    made = evaluation(name)
    ends = Interval(value, value - 0.01, value + 0.01)
    return replace(made, operating_point=replace(made.operating_point, speedup_over_baseline=ends))


def test_comparison_sorts_by_speedup_and_undefined_comes_last(tmp_path: Path) -> None:
    write_comparison([unmeasured(), faster("slow", 1.01), faster("fast", 1.2)], tmp_path)
    markdown = (tmp_path / "report.md").read_text()
    found = [markdown.index(f"| {name} |") for name in ("fast", "slow", "fp8")]
    assert found == sorted(found)
    assert cells(markdown, "fast")[1:3] == ["1.200× (1.190× to 1.210×)", "go"]
    assert cells(markdown, "fp8")[1:3] == ["undefined", "inconclusive"]
    assert markdown.splitlines()[2] == "## fast"
    assert "Recommended: the fastest of the recipes with a go (2 go, 0 no-go, 1" in markdown
    assert "draft step is undefined: fp8." in markdown
    assert "go from 1.020×" in (tmp_path / "report.html").read_text()


def controlled() -> Evaluation:
    """The control: a no-go that is no recipe."""
    made = evaluation("identity")
    check = Check("another than the baseline", "decides", "fail", None, None, None, "control")
    verdict = replace(made.verdict, decision="no-go", checks=(*made.verdict.checks, check))
    return replace(made, verdict=verdict)


def test_the_control_is_not_counted_among_the_recipes() -> None:
    built = comparison([controlled(), unmeasured()])
    assert built.title == "1 recipe and the control side by side"
    assert built.banner is not None
    assert "(0 go, 0 no-go, 1 inconclusive)" in built.banner.why
    assert built.banner.measure == "of 1 go"
    assert comparison([controlled(), faster("fast", 1.2)]).banner.why.startswith("Recommended")
    alone = comparison([controlled()]).banner
    assert alone is not None
    assert alone.why == "Only the control was evaluated: there is no recipe."


def test_where_no_recipe_has_a_go_the_page_says_what_keeps_each_from_it() -> None:
    slow = evaluation("int8")
    arms = {
        name: replace(arm, step_bytes=size)
        for (name, arm), size in zip(
            slow.latency.arms.items(), (100_000_000, 40_000_000, None), strict=True
        )
    }
    latency = replace(slow.latency, arms=arms, roofline=Roofline(400e9, 300e9, {}))
    point = replace(slow.operating_point, draft_latency_saving=Interval(-1.66, -1.72, -1.60))
    verdict = replace(slow.verdict, decision="no-go")
    slow = replace(slow, latency=latency, operating_point=point, verdict=verdict)
    unsure = Check(
        "speedup over the baseline draft",
        "decides",
        "unsure",
        Interval(1.03, 1.0, 1.06),
        1.02,
        ">=",
        "",
    )
    doubt = replace(
        evaluation("int4").verdict,
        decision="inconclusive",
        checks=(unsure,),
        to_settle="about 130 prompts (now 32)",
    )
    open_ = replace(evaluation("int4"), verdict=doubt)
    built = comparison([slow, open_, unmeasured(), controlled()])
    text = " ".join(render_markdown(built).split())
    assert "What keeps each recipe from a go here" in text
    assert f"fp8: its draft step was not timed: {WHY_UNDEFINED}." in text
    assert "its draft step is 2.66 times as long (2.60 to 2.72)" in text
    assert "its bytes alone would make it 60.0 % shorter" in text
    # 100 MB in 0.8125 ms are 123 GB/s of 400.
    assert "not bound by memory: the baseline's reads at 31 % of the copy bandwidth" in text
    assert "1.020× would need a step" in text
    assert (
        "int4: its speedup over the baseline draft, 1.030× (1.000× to 1.060×), is not told" in text
    )
    assert "apart from the limit of 1.020×; to settle it: about 130 prompts" in text
    assert (
        "identity:"
        not in text.partition("What keeps each recipe from a go here")[2].partition("##")[0]
    )
    assert "What keeps each" not in str(comparison([faster("fast", 1.2)]).lead)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"traffic": {"sha256": "f" * 64}}, "traffic"),
        ({"target": {"name": "other/Target", "weights_sha256": "e" * 64}}, "target"),
        ({"baseline": {"name": "other/Draft", "weights_sha256": "e" * 64}}, "baseline draft"),
    ],
)
def test_comparison_refuses_runs_of_another_question(change: dict[str, object], what: str) -> None:
    other = evaluation("odd-one")
    other = replace(other, provenance=other.provenance | change)
    with pytest.raises(PairingError, match=f"'int8' and 'odd-one' differ in {what}"):
        comparison([evaluation(), other])


def test_comparison_refuses_another_rule_and_no_runs() -> None:
    other = replace(evaluation("odd-one"), acceptance_rule="rejection")
    with pytest.raises(PairingError, match="acceptance rule: 'greedy' and 'rejection'"):
        comparison([evaluation(), other])
    with pytest.raises(OptionError):
        comparison([])


def test_comparison_says_when_conditions_differ() -> None:
    other = faster("batch-8", 1.1)
    other = replace(other, latency=replace(other.latency, batch_size=8))
    built = comparison([evaluation(), other])
    assert "different conditions" in str(built.lead)
    assert "different conditions" not in str(comparison([evaluation(), faster("x", 1.1)]).lead)


def test_compare_reads_run_directories_and_keeps_what_is_there(tmp_path: Path) -> None:
    for made in (evaluation("a"), evaluation("b")):
        write_evaluation(made, tmp_path / made.name / "evaluation.json")
    runs = [tmp_path / "a", tmp_path / "b"]
    assert "2 recipes side by side" in render_comparison(compare(runs, tmp_path / "out"))
    with pytest.raises(OutputExistsError):
        compare(runs, tmp_path / "out")
    compare(runs, tmp_path / "out", force=True)


def test_anchors_are_plain() -> None:
    assert Section("Where rejections fall", ()).anchor == "where-rejections-fall"


def test_side_by_side_acceptance_is_at_one_k_for_all() -> None:
    first, second = evaluation("first"), evaluation("second")
    moved = replace(first.operating_point, candidate_num_speculative_tokens=1)
    second = replace(second, operating_point=moved)
    tables = [
        block
        for section in comparison([first, second]).sections
        for block in section.blocks
        if isinstance(block, Table) and "Loss" in block.columns
    ]
    rows = {row[0]: row[1:] for row in tables[0].rows}
    assert rows["first"] == rows["second"]
    assert "at k = 4 for all" in (tables[0].caption or "")
