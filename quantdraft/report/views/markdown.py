"""A report as Markdown: what a pull request can show, with the charts as files beside it."""

from __future__ import annotations

from collections.abc import Sequence

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
from quantdraft.report.views.escaping import escape, escape_html, fence
from quantdraft.report.views.view import show_block

FIGURES_DIR = "figures"
FATE_MARKS: dict[TokenFate, str] = {"accepted": "█", "rejected": "×", "not proposed": "·"}


def render(document: Document) -> str:
    """Return the whole report."""
    parts = [f"# {escape(document.title)}"]
    if document.banner:
        banner = document.banner
        parts += [f"## {escape(banner.word)}", f"**{escape(banner.why)}**"]
        if banner.number:
            parts.append(f"**{escape(banner.number)}** {escape(banner.measure)}")
    parts.append(escape(document.subtitle))
    parts += [text for block in document.lead if (text := render_block(block))]
    parts += [text for section in document.sections for text in render_section(section)]
    if document.footer:
        parts += ["---", escape(document.footer)]
    return "\n\n".join(parts) + "\n"


def render_section(section: Section) -> list[str]:
    """Return a section's heading and blocks, each a paragraph of its own."""
    blocks = [text for block in section.blocks if (text := render_block(block))]
    if section.is_detail:
        summary = f"<details><summary>{escape_html(section.title)}</summary>"
        return [summary, *blocks, "</details>"]
    return [f"## {escape(section.title)}", *blocks]


def render_block(block: Block) -> str:
    """Return one block; a chart is a link to its file, with its numbers folded below."""
    return show_block(block, _MARKDOWN)


class _Markdown:
    """The blocks as Markdown."""

    def paragraph(self, block: Paragraph) -> str:
        return escape(block.text)

    def bullets(self, block: Bullets) -> str:
        return "\n".join(f"- {escape(item)}" for item in block.items)

    def notice(self, block: Notice) -> str:
        return f"> **{escape(block.title)}**\n>\n" + "\n".join(
            f"> {escape(i)}" for i in block.items
        )

    def figures(self, block: Figures) -> str:
        rows = tuple((figure.label, figure.value, figure.note) for figure in block.items)
        return self.table(Table(("Measure", "Value", "In words"), rows, frozenset({1})))

    def table(self, block: Table) -> str:
        """Return a pipe table; numeric columns are aligned right."""
        columns = range(len(block.columns))
        rules = (" ---: " if column in block.numeric else " --- " for column in columns)
        lines = [_row(block.columns), f"|{'|'.join(rules)}|", *map(_row, block.rows)]
        caption = [f"\n*{escape(block.caption)}*"] if block.caption else []
        return "\n".join(lines + caption)

    def equations(self, block: Equations) -> str:
        return fence("\n".join(map(equation_line, (block.formula, *block.lines))))

    def chart(self, block: Chart) -> str:
        shown = escape(f"{block.title}. {block.description}")
        return (
            f"**{escape(block.title)}.** {escape(block.description)}\n\n"
            f"![{shown}]({FIGURES_DIR}/{block.name}.svg)\n\n"
            f"<details><summary>Numbers</summary>\n\n{self.table(block.data)}\n\n</details>"
        )

    def passages(self, block: Passages) -> str:
        return "\n\n".join((escape(block.legend), *map(_passage, block.items)))


_MARKDOWN = _Markdown()


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escape(cell, is_cell=True) for cell in cells) + " |"


def _passage(passage: Passage) -> str:
    """Return the tokens as they stand, and under a heading of each arm one mark a token."""
    fates = "\n".join(
        f"{name:<10} " + "".join(FATE_MARKS[fate] for fate in marks) for name, marks in passage.arms
    )
    summary = f"{passage.title} ({passage.domain}): {passage.note}"
    return (
        f"<details><summary>{escape_html(summary)}</summary>\n\n"
        f"{fence(shown_text(''.join(passage.tokens)))}\n\n{fence(fates)}\n\n</details>"
    )


def equation_line(equation: Equation) -> str:
    """Return `candidate       (4 · 0.8123 + 5.83) / 2.312 = 3.927 ms per token`."""
    result = f" = {equation.result}" if equation.result else ""
    return f"{equation.label:<15} ({equation.numerator}) / {equation.denominator}{result}"
