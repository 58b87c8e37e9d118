"""A report as Markdown: what a pull request or a model card can show. Charts are left to HTML."""

from __future__ import annotations

from quantdraft.report.blocks import (
    Bars,
    Block,
    Bullets,
    Document,
    Equation,
    Equations,
    Figures,
    Forest,
    Lines,
    Notice,
    Paragraph,
    Section,
    Table,
)


def render(document: Document) -> str:
    """The whole report."""
    parts = [f"# {document.title}"]
    if document.banner:
        parts += [f"## {document.banner.word}", f"**{escape(document.banner.why)}**"]
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
        summary = f"<details><summary>{section.title}</summary>"
        return [summary, *blocks, "</details>"]
    return [f"## {section.title}", *blocks]


def render_block(block: Block) -> str:
    """One block; empty for a chart, whose numbers are in the table beside it."""
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
        case Bars() | Lines() | Forest():
            text = ""
    return text


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
    """Keep a text on its line and its marks from being read as Markdown."""
    flat = " ".join(text.split())
    for mark in ("\\", "|", "<", "*", "`"):
        flat = flat.replace(mark, "&lt;" if mark == "<" else f"\\{mark}")
    return flat
