"""A choice as sections of text and tables, for every view."""

from __future__ import annotations

from collections.abc import Iterator

from quantdraft.record import Interval
from quantdraft.record.wording import (
    UNDEFINED,
    compared,
    counted,
    interval,
    milliseconds,
    num_bytes,
    percent,
    significant,
    times,
    valued,
)
from quantdraft.report.blocks import Banner, Block, Bullets, Document, Notice, Section, Table
from quantdraft.report.glossary import words_section
from quantdraft.report.views import terminal
from quantdraft.workflows.select.names import name_of, short
from quantdraft.workflows.select.pictures import domains_chart, plane_chart, speeds_chart
from quantdraft.workflows.select.ranking import Ranked
from quantdraft.workflows.select.record import Selection
from quantdraft.workflows.select.traits import Traits

MAX_DIFFERENCES = 4
MAX_NAMES = 2


def selection_document(selection: Selection) -> Document:
    """The answer, the ranking, why, and what the drafts are."""
    return Document(
        title=f"{len(selection.rows)} drafts and recipes for one target",
        subtitle=(
            f"target {selection.target} · "
            f"{counted(selection.num_prompts, 'prompt')} of {selection.traffic} · "
            f"rule {selection.acceptance_rule}"
        ),
        banner=banner(selection),
        lead=(*_refusals(selection), speeds_chart(selection), ranking_table(selection)),
        sections=(
            Section("Why this order", (Bullets(tuple(reasons(selection))),)),
            Section("Acceptance and cost", (plane_chart(selection), cost_table(selection))),
            *_domains(selection),
            Section("What the drafts are", (traits_table(selection), *_warnings(selection))),
            words_section(),
        ),
        footer="Every number comes from the runs' evaluation.json; selection.json has all rows.",
    )


def banner(selection: Selection) -> Banner:
    """The draft, the recipe and the k to take; in doubt where the intervals leave it open."""
    best, speed = selection.recommended, _deciding(selection)
    pays, k = speed.high > 1, best.num_speculative_tokens
    is_sure = selection.basis == "measured" and not selection.undecided and not best.alarms
    return Banner(
        name_of(best, selection) if pays else "NONE",
        answer(selection),
        "bad" if not pays else "good" if is_sure else "doubt",
        times(speed.value),
        f"the target's own speed at k = {k}, {selection.basis}, "
        f"95 % interval {interval(speed, 'speedup')}",
    )


def _deciding(selection: Selection) -> Interval:
    """The recommended row's speed, of the kind that the order goes by."""
    best = selection.recommended
    return best.measured if best.measured and selection.basis == "measured" else best.predicted


def _domains(selection: Selection) -> tuple[Section, ...]:
    chart = domains_chart(selection)
    return () if chart is None else (Section("By domain", (chart, chart.data)),)


def lines_of(selection: Selection) -> str:
    """The whole of it as plain text for a terminal."""
    return terminal.render(selection_document(selection))


def answer(selection: Selection) -> str:
    """Which draft, which recipe, which k, and how sure."""
    best = selection.recommended
    recipe = "as it is" if best.recipe == "none" else f"with the recipe {best.recipe}"
    speed = _deciding(selection)
    text = (
        f"Take {best.draft} {recipe}, at k = {best.num_speculative_tokens}: "
        f"{selection.basis} at {valued(speed, 'speedup')} of the target's own speed."
    )
    if speed.high <= 1:
        text = (
            f"None of these pays: the best, {name_of(best, selection)}, is {selection.basis} at "
            f"{valued(speed, 'speedup')} of the target's own speed. Serve without speculation."
        )
    text += "".join(f" {_passed_over(row, selection)}" for row in selection.passed_over)
    undecided = [name_of(row, selection) for row in selection.undecided if row is not best]
    if undecided:
        first = "it" if best is selection.rows[0] else name_of(selection.rows[0], selection)
        more = "more prompts" + (" or longer timing" if selection.basis == "measured" else "")
        text += f" The intervals cannot tell {first} from {_listed(undecided)}: {more} might."
    if selection.basis_reason:
        text += f" Ordered by prediction, because {selection.basis_reason}."
    return text


def _passed_over(row: Ranked, selection: Selection) -> str:
    """Why a row that measured faster is not taken."""
    speed = "undefined" if row.measured is None else _times(row.measured)
    why = f"its verdict is {row.decision}"
    if row.alarms:
        why = f"it raised the alarm {', '.join(row.alarms)}"
    return (
        f"{name_of(row, selection)} comes before it by the estimate ({speed}), but {why}: a recipe "
        "must be surely faster than its own draft as it is."
    )


def _listed(names: list[str]) -> str:
    """The first few, and how many more."""
    rest = len(names) - MAX_NAMES
    return ", ".join(names) if rest <= 1 else f"{', '.join(names[:MAX_NAMES])} and {rest} more"


def ranking_table(selection: Selection) -> Table:
    """One row a draft and recipe, fastest first."""
    return Table(
        columns=("Draft", "Recipe", "k", "Measured", "Predicted", "Against the first", "Verdict"),
        rows=tuple(
            (
                short(row.draft, selection),
                row.recipe,
                str(row.num_speculative_tokens),
                UNDEFINED if row.measured is None else _times(row.measured),
                _times(row.predicted),
                "–" if row.speed_ratio is None else _times(row.speed_ratio),
                _verdict(row),
            )
            for row in selection.rows
        ),
        numeric=frozenset({2, 3, 4, 5}),
        caption=(
            f"In the order of the {selection.basis} speedup over the target alone, each at its own "
            "best k, with 95 % intervals. Predicted: if memory were the only limit. Against "
            "the first: speed over the first row's; the intervals hold for all rows together, and "
            "a row whose interval reaches 1 cannot be told apart from the first. "
            "Verdict: of the recipe on its own draft; only a go is recommended."
        ),
    )


def reasons(selection: Selection) -> Iterator[str]:
    """Of every row after the first: what it loses in tokens, in time, and how it differs."""
    best = selection.rows[0]
    if len(selection.rows) == 1:
        yield "There is nothing to compare it with."
    for row in selection.rows[1:]:
        ratio = row.speed_ratio
        sure = "" if row.is_slower else " (not told apart)"
        speed = times(None if ratio is None else ratio.value)
        yield (
            f"{name_of(row, selection)}: {speed} the first's speed{sure}; {_gap(row, selection)}; "
            f"its draft step costs {_cost(row)} of a step of the target, the first's {_cost(best)}"
            f"{_difference(row, best)}"
        )


def _gap(row: Ranked, selection: Selection) -> str:
    """Both rates at the common k: at each one's own k they would not compare."""
    gap = row.acceptance_gap.value if row.acceptance_gap else 0.0
    side = compared(gap, 0.0, "higher", "lower", "")
    size = f"{abs(100 * gap):.1f} points {side}" if side else "the same"
    return f"its acceptance rate at k = {selection.common_k} is {size}"


def _cost(row: Ranked) -> str:
    """c, measured where it was, else by the bytes."""
    return (
        percent(row.step_cost.value) if row.step_cost else f"{percent(row.draft_cost)} (by bytes)"
    )


def _difference(row: Ranked, best: Ranked) -> str:
    """The traits that differ, where the drafts do."""
    if row.draft == best.draft:
        return "; the same draft"
    found = row.traits.differences(best.traits)
    more = f" and {len(found) - MAX_DIFFERENCES} more" if len(found) > MAX_DIFFERENCES else ""
    listed = ", ".join(found[:MAX_DIFFERENCES]) + more
    return f"; {listed}" if listed else "; the same shape: its training differs"


def cost_table(selection: Selection) -> Table:
    """Acceptance at one k for all, and what a step reads and takes."""
    return Table(
        columns=(
            "Draft",
            "Recipe",
            "Acceptance rate",
            "Minus the first, points",
            "Step",
            "Bytes",
            "c by bytes",
        ),
        rows=tuple(
            (
                short(row.draft, selection),
                row.recipe,
                valued(row.acceptance_rate, "rate"),
                "–" if row.acceptance_gap is None else _points(row.acceptance_gap),
                milliseconds(row.draft_step_ms),
                num_bytes(row.step_bytes),
                f"{row.draft_cost:.3f}",
            )
            for row in selection.rows
        ),
        numeric=frozenset(range(2, 7)),
        caption=(
            f"Acceptance at k = {selection.common_k} for all, paired by prompt. "
            "Bytes of a draft step at batch 1; c by bytes: those over the target's. The "
            "picture's c is measured."
        ),
    )


def traits_table(selection: Selection) -> Table:
    """One row a draft: what may explain the differences."""
    by_draft = {row.draft: row for row in reversed(selection.rows)}
    return Table(
        columns=(
            "Draft",
            "Family",
            "Size",
            "Target is",
            "Layers",
            "Hidden",
            "Heads",
            "MLP",
            "Trained on",
        ),
        rows=tuple(
            _traits_row(short(name, selection), row.traits, row.size_ratio)
            for name, row in sorted(
                by_draft.items(), key=lambda each: each[1].traits.num_parameters
            )
        ),
        numeric=frozenset(range(2, 8)),
        caption="From each config; `trained on` only where the config states it. Usual are targets "
        "10 to 30 times as large.",
    )


def _traits_row(name: str, traits: Traits, size_ratio: float) -> tuple[str, ...]:
    heads = f"{_number(traits.num_heads)}/{_number(traits.num_kv_heads)}"
    return (
        name,
        traits.family,
        f"{significant(traits.num_parameters / 1e6)}M",
        f"{size_ratio:.1f}×",
        _number(traits.num_layers),
        _number(traits.hidden_size),
        heads,
        _number(traits.mlp_size),
        traits.training_domain or "not stated",
    )


def _times(ends: Interval) -> str:
    """`1.53× (1.17 to 2.12)`."""
    return f"{ends.value:.2f}× ({ends.low:.2f} to {ends.high:.2f})"


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)


def _points(gap: Interval) -> str:
    """`−3.1 (−4.0 to −2.2)`."""
    ends = [f"{100 * end:+.1f}".replace("-", "−") for end in (gap.value, gap.low, gap.high)]
    return f"{ends[0]} ({ends[1]} to {ends[2]})"


def _verdict(row: Ranked) -> str:
    if row.alarms:
        return f"alarm: {', '.join(row.alarms)}"
    return row.decision or "–"


def _warnings(selection: Selection) -> tuple[Block, ...]:
    """What does not fit well between a draft and the target."""
    lines = [
        f"{short(draft, selection)}: {line}"
        for draft, found in selection.warnings.items()
        for line in found
    ]
    return (Bullets(tuple(lines)),) if lines else ()


def _refusals(selection: Selection) -> tuple[Block, ...]:
    lines = [
        f"{draft}: {why}" for draft, why in (*selection.refused.items(), *selection.failed.items())
    ]
    return (Notice("Not in the ranking", tuple(lines), "doubt"),) if lines else ()
