"""A report as Markdown: what a pull request can show, with the pictures as files beside it."""

from __future__ import annotations

import re

from quantdraft.record.analysis import TokenFate
from quantdraft.report.blocks import (
    Block,
    Bullets,
    Chart,
    Document,
    Equation,
    Equations,
    Figures,
    Notice,
    Paragraph,
    Passage,
    Passages,
    Section,
    Table,
)
from quantdraft.report.safety import shown_text

FIGURES_DIR = "figures"
# In code nothing is escaped, so what would need it is no code: a bar ends a cell of a table.
CODE = re.compile(r"`([^`|<>\\*]+)`")
FATE_MARKS: dict[TokenFate, str] = {"accepted": "█", "rejected": "×", "not proposed": "·"}


def render(document: Document) -> str:
    """The whole report."""
    parts = [f"# {escape(document.title)}"]
    if document.banner:
        banner = document.banner
        parts += [f"## {banner.word}", f"**{escape(banner.why)}**"]
        if banner.number:
            parts.append(f"**{escape(banner.number)}** {escape(banner.measure)}")
    parts.append(escape(document.subtitle))
    parts += [text for block in document.lead if (text := render_block(block))]
    parts += [text for section in document.sections for text in render_section(section)]
    if document.footer:
        parts += ["---", escape(document.footer)]
    return "\n\n".join(parts) + "\n"


def render_section(section: Section) -> list[str]:
    """A section's heading and blocks, each a paragraph of its own."""
    blocks = [text for block in section.blocks if (text := render_block(block))]
    if section.is_detail:
        summary = f"<details><summary>{escape(section.title)}</summary>"
        return [summary, *blocks, "</details>"]
    return [f"## {section.title}", *blocks]


def render_block(block: Block) -> str:
    """One block; a picture is a link to its file, its numbers folded below."""
    match block:
        case Paragraph():
            text = escape(block.text)
        case Bullets():
            text = _bullets(block.items)
        case Notice():
            text = f"> **{block.title}**\n>\n" + "\n".join(f"> {escape(i)}" for i in block.items)
        case Figures():
            rows = tuple((figure.label, figure.value, figure.note) for figure in block.items)
            text = table(Table(("Measure", "Value", "In words"), rows, frozenset({1})))
        case Table():
            text = table(block)
        case Equations():
            text = _equations(block)
        case Chart():
            text = _chart(block)
        case Passages():
            text = "\n\n".join((escape(block.legend), *(_passage(item) for item in block.items)))
    return text


def _chart(chart: Chart) -> str:
    shown = escape(f"{chart.title}. {chart.description}").replace("]", "\\]")
    return (
        f"**{escape(chart.title)}.** {escape(chart.description)}\n\n"
        f"![{shown}]({FIGURES_DIR}/{chart.name}.svg)\n\n"
        f"<details><summary>Numbers</summary>\n\n{table(chart.data)}\n\n</details>"
    )


def _passage(passage: Passage) -> str:
    """Tokens as they stand, and under a heading of each arm one mark a token."""
    fates = "\n".join(
        f"{name:<10} " + "".join(FATE_MARKS[fate] for fate in marks) for name, marks in passage.arms
    )
    text = shown_text("".join(passage.tokens)).replace("`", "ˋ")
    return (
        f"<details><summary>{escape(passage.title)} ({escape(passage.domain)}): "
        f"{escape(passage.note)}</summary>\n\n```text\n{text}\n```\n\n"
        f"```text\n{fates}\n```\n\n</details>"
    )


def _bullets(items: tuple[str, ...]) -> str:
    return "\n".join(f"- {escape(item)}" for item in items)


def _equations(block: Equations) -> str:
    lines = [equation_line(block.formula), *(equation_line(line) for line in block.lines)]
    return "```text\n" + "\n".join(lines) + "\n```"


def equation_line(equation: Equation) -> str:
    """`candidate       (4 · 0.8123 + 5.83) / 2.312 = 3.927 ms per token`."""
    result = f" = {equation.result}" if equation.result else ""
    return f"{equation.label:<15} ({equation.numerator}) / {equation.denominator}{result}"


def table(block: Table) -> str:
    """A pipe table; numeric columns are aligned right."""
    columns = range(len(block.columns))
    lines = [
        "| " + " | ".join(escape(title) for title in block.columns) + " |",
        "|"
        + "|".join(" ---: " if column in block.numeric else " --- " for column in columns)
        + "|",
        *("| " + " | ".join(escape(cell) for cell in row) + " |" for row in block.rows),
    ]
    caption = [f"\n*{escape(block.caption)}*"] if block.caption else []
    return "\n".join(lines + caption)


def escape(text: str) -> str:
    """Keep a text on its line and its marks from being read as Markdown; `code` stays code."""
    flat = " ".join(shown_text(text).split())
    parts = CODE.split(flat)  # every second one is the inside of a pair of backticks
    return "".join(f"`{part}`" if at % 2 else _plain(part) for at, part in enumerate(parts))


def _plain(text: str) -> str:
    for mark in ("\\", "|", "<", "*", "`"):
        text = text.replace(mark, "&lt;" if mark == "<" else f"\\{mark}")
    return text
