"""A choice as sections of text, tables and pictures, for every view."""

from __future__ import annotations

from collections.abc import Iterator

from quantdraft.record import Interval
from quantdraft.record.wording import (
    change_points,
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
from quantdraft.report.charts.style import unchecked
from quantdraft.report.glossary import words_section
from quantdraft.report.views import terminal
from quantdraft.workflows.select.pictures import cost_chart, domains_chart, speeds_chart
from quantdraft.workflows.select.record import Ranked, Selection

MAX_DIFFERENCES = 4
MAX_NAMES = 2


def selection_text(selection: Selection) -> str:
    """Return the whole choice as plain text for a terminal."""
    return terminal.render(selection_document(selection))


@unchecked
def selection_document(selection: Selection) -> Document:
    """Return the answer, the ranking, the reasons, and what the drafts are."""
    domains = domains_chart(selection)
    return Document(
        title=f"{len(selection.rows)} drafts and recipes for one target",
        subtitle=(
            f"target {selection.target} · "
            f"{counted(selection.num_prompts, 'prompt')} of {selection.traffic} · "
            f"rule {selection.acceptance_rule}"
        ),
        banner=selection_banner(selection),
        lead=(*_refusals(selection), speeds_chart(selection), ranking_table(selection)),
        sections=(
            Section("Why this order", (Bullets(tuple(_reasons(selection))),)),
            Section("Acceptance and cost", (cost_chart(selection), cost_table(selection))),
            *([Section("By domain", (domains, domains.data))] if domains else []),
            Section("What the drafts are", (traits_table(selection), *_warnings(selection))),
            words_section(),
        ),
        footer="Every number comes from the runs' evaluation.json; selection.json has all rows.",
    )


def selection_banner(selection: Selection) -> Banner:
    """Return the draft, the recipe and the k to take; in doubt where the intervals overlap."""
    best, speed = selection.recommended, selection.deciding_speed
    is_sure = selection.basis == "measured" and not selection.undecided and not best.alarms
    return Banner(
        selection.row_name(best) if selection.pays else "NONE",
        answer(selection),
        "bad" if not selection.pays else "good" if is_sure else "doubt",
        times(speed.value),
        f"the target's own speed at k = {best.num_speculative_tokens}, {selection.basis}, "
        f"95 % interval {interval(speed, 'speedup')}",
    )


def answer(selection: Selection) -> str:
    """Return which draft, which recipe and which k to take, and how sure that is."""
    best = selection.recommended
    recipe = "as it is" if best.recipe == "none" else f"with the recipe {best.recipe}"
    speed = valued(selection.deciding_speed, "speedup")
    text = (
        f"Take {best.draft} {recipe}, at k = {best.num_speculative_tokens}: "
        f"{selection.basis} at {speed} of the target's own speed."
    )
    if not selection.pays:
        needed = selection.min_speedup
        limit = "" if needed == 1 else f"; the policy asks for {times(needed)}"
        text = (
            f"None of these pays: the best, {selection.row_name(best)}, is {selection.basis} at "
            f"{speed} of the target's own speed{limit}. Serve without speculation."
        )
    text += "".join(f" {_passed_over(row, selection)}" for row in selection.passed_over)
    undecided = [selection.row_name(row) for row in selection.undecided if row is not best]
    if undecided:
        first = "it" if best is selection.rows[0] else selection.row_name(selection.rows[0])
        more = "more prompts" + (" or longer timing" if selection.basis == "measured" else "")
        rest = len(undecided) - MAX_NAMES
        names = undecided if rest <= 1 else undecided[:MAX_NAMES]
        listed = ", ".join(names) + ("" if rest <= 1 else f" and {rest} more")
        text += f" The intervals cannot tell {first} from {listed}: {more} might."
    if selection.basis_reason:
        text += f" Ordered by prediction, because {selection.basis_reason}."
    return text


def _passed_over(row: Ranked, selection: Selection) -> str:
    """Return why a row that measured faster is not taken."""
    why = f"its verdict is {row.decision}"
    if row.alarms:
        why = f"it raised the alarm {', '.join(row.alarms)}"
    return (
        f"{selection.row_name(row)} is faster by the estimate ({valued(row.measured, 'speedup')}), "
        f"but {why}: a recipe must be surely faster than its own draft as it is."
    )


def ranking_table(selection: Selection) -> Table:
    """Return one row for each draft and recipe, fastest first."""
    return Table.of(
        [_ranking_row(row, selection) for row in selection.rows],
        {2, 3, 4, 5},
        caption=(
            f"In the order of the {selection.basis} speedup over the target alone, each at its own "
            "best k, with 95 % intervals. Predicted: if memory were the only limit. Against "
            "the first: speed over the first row's; the intervals hold for all rows together, and "
            "a row whose interval reaches 1 cannot be told apart from the first. "
            "Verdict: of the recipe on its own draft; only a go is recommended."
        ),
    )


def _ranking_row(row: Ranked, selection: Selection) -> dict[str, str]:
    ratio, alarms = row.speed_ratio, ", ".join(row.alarms)
    return {
        "Draft": selection.short_name(row.draft),
        "Recipe": row.recipe,
        "k": str(row.num_speculative_tokens),
        "Measured": valued(row.measured, "speedup"),
        "Predicted": valued(row.predicted, "speedup"),
        "Against the first": "–" if ratio is None else valued(ratio, "speed ratio"),
        "Verdict": f"alarm: {alarms}" if alarms else row.decision or "–",
    }


def _reasons(selection: Selection) -> Iterator[str]:
    """Yield what every row after the first loses in tokens and in time, and how it differs."""
    best = selection.rows[0]
    if len(selection.rows) == 1:
        yield "There is nothing to compare it with."
    for row in selection.rows[1:]:
        speed = times(None if row.speed_ratio is None else row.speed_ratio.value)
        yield (
            f"{selection.row_name(row)}: {speed} the first's speed"
            f"{'' if row.is_slower else ' (not told apart)'}; {_gap(row, selection)}; "
            f"its draft step costs {_cost(row)} of a step of the target, the first's {_cost(best)}"
            f"; {_difference(row, best)}"
        )


def _gap(row: Ranked, selection: Selection) -> str:
    """Return the difference of the acceptance rates at the common k, in words."""
    gap = row.acceptance_gap.value if row.acceptance_gap else 0.0
    side = compared(gap, 0.0, "higher", "lower", "")
    size = f"{change_points(abs(gap)).lstrip('+')} {side}" if side else "the same"
    return f"its acceptance rate at k = {selection.common_k} is {size}"


def _cost(row: Ranked) -> str:
    """Return c, measured where it was, else by the bytes."""
    cost = row.step_cost
    return percent(cost.value) if cost else f"{percent(row.draft_cost)} (by bytes)"


def _difference(row: Ranked, best: Ranked) -> str:
    """Return the traits that differ, where the drafts do."""
    if row.draft == best.draft:
        return "the same draft"
    found = row.traits.differences(best.traits)
    more = f" and {len(found) - MAX_DIFFERENCES} more" if len(found) > MAX_DIFFERENCES else ""
    return ", ".join(found[:MAX_DIFFERENCES]) + more or "the same shape: its training differs"


def cost_table(selection: Selection) -> Table:
    """Return acceptance at one k for all, and what a step reads and takes."""
    rows = [
        {
            "Draft": selection.short_name(row.draft),
            "Recipe": row.recipe,
            "Acceptance rate": valued(row.acceptance_rate, "rate"),
            "Minus the first": "–" if row.acceptance_gap is None else _points(row.acceptance_gap),
            "Step": milliseconds(row.draft_step_ms),
            "Bytes": num_bytes(row.step_bytes),
            "c by bytes": f"{row.draft_cost:.3f}",
        }
        for row in selection.rows
    ]
    return Table.of(
        rows,
        range(2, 7),
        caption=(
            f"Acceptance at k = {selection.common_k} for all, paired by prompt. "
            "Bytes of a draft step at batch 1; c by bytes: those over the target's. The "
            "picture's c is measured."
        ),
    )


def _points(gap: Interval) -> str:
    """Write a gap with its signs: `−3.1 points (−4.0 to −2.2 points)`."""
    low = change_points(gap.low).removesuffix(" points")
    return f"{change_points(gap.value)} ({low} to {change_points(gap.high)})"


def traits_table(selection: Selection) -> Table:
    """Return one row for each draft: what may explain the differences."""
    first = {row.draft: row for row in reversed(selection.rows)}
    by_size = sorted(first.values(), key=lambda row: row.traits.num_parameters)
    return Table.of(
        [_traits_row(row, selection) for row in by_size],
        range(2, 8),
        caption="From each config; `trained on` only where the config states it. Usual are targets "
        "10 to 30 times as large.",
    )


def _traits_row(row: Ranked, selection: Selection) -> dict[str, str]:
    traits = row.traits
    numbers = (traits.num_layers, traits.hidden_size, traits.num_heads, traits.num_kv_heads)
    layers, hidden, heads, kv_heads, mlp = (
        "?" if each is None else str(each) for each in (*numbers, traits.mlp_size)
    )
    return {
        "Draft": selection.short_name(row.draft),
        "Family": traits.family,
        "Size": f"{significant(traits.num_parameters / 1e6)}M",
        "Target is": f"{row.size_ratio:.1f}×",
        "Layers": layers,
        "Hidden": hidden,
        "Heads": f"{heads}/{kv_heads}",
        "MLP": mlp,
        "Trained on": traits.training_domain or "not stated",
    }


def _warnings(selection: Selection) -> tuple[Block, ...]:
    """Return what does not fit well between a draft and the target."""
    lines = [
        f"{selection.short_name(draft)}: {line}"
        for draft, found in selection.warnings.items()
        for line in found
    ]
    return (Bullets(tuple(lines)),) if lines else ()


def _refusals(selection: Selection) -> tuple[Block, ...]:
    lines = [f"{name}: {why}" for name, why in (selection.refused | selection.failed).items()]
    return (Notice("Not in the ranking", tuple(lines), "doubt"),) if lines else ()
