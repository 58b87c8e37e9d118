"""A report as one self-contained HTML page: no scripts, nothing loaded, light and dark."""

from __future__ import annotations

from html import escape
from pathlib import Path

from quantdraft.report import charts
from quantdraft.report.blocks import (
    Banner,
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
from quantdraft.report.wording import NUMBER_AND_UNIT

STYLE = Path(__file__).parent / "style.css"
WIDE = 6  # columns from which a table takes the whole width of the page


def render(document: Document) -> str:
    """The whole page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_page_title(document)}</title>\n"
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        f"{_first_screen(document)}\n<main>\n{_sections(document.sections)}\n</main>\n"
        f"<footer>{words(document.footer)}</footer>\n</body>\n</html>\n"
    )


def _page_title(document: Document) -> str:
    verdict = f"{document.banner.word}: " if document.banner else ""
    return escape(f"{verdict}{document.title} · quantdraft")


def _first_screen(document: Document) -> str:
    blocks = "\n".join(_block(block) for block in document.lead)
    return (
        f'<header>\n<h1>{words(document.title)}</h1>\n<p class="subtitle">'
        f"{_subtitle(document.subtitle)}</p>\n{_banner(document.banner)}\n{blocks}\n</header>"
    )


def _subtitle(text: str) -> str:
    """Facts stay whole; lines break between them."""
    return " · ".join(f"<span>{words(fact)}</span>" for fact in text.split(" · "))


def _banner(banner: Banner | None) -> str:
    if banner is None:
        return ""
    return (
        f'<div class="verdict {banner.tone}"><p class="word">{words(banner.word)}</p>'
        f'<p class="why">{words(banner.why)}</p></div>'
    )


def _sections(sections: tuple[Section, ...]) -> str:
    return "\n".join(_section(section) for section in sections)


def _section(section: Section) -> str:
    body = _blocks(section.blocks)
    if section.is_detail:
        return (
            f'<details id="{section.anchor}"><summary><h2>{words(section.title)}</h2></summary>'
            f"\n{body}\n</details>"
        )
    return f'<section id="{section.anchor}">\n<h2>{words(section.title)}</h2>\n{body}\n</section>'


def _blocks(blocks: tuple[Block, ...]) -> str:
    """Charts that follow each other stand side by side where the page is wide enough."""
    parts: list[str] = []
    row: list[str] = []
    for block in blocks:
        if isinstance(block, Bars | Lines):
            row.append(_block(block))
            continue
        parts += [_row(row), _block(block)]
        row = []
    return "\n".join(part for part in (*parts, _row(row)) if part)


def _row(drawn: list[str]) -> str:
    return f'<div class="charts n{len(drawn)}">{"".join(drawn)}</div>' if drawn else ""


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            text = f"<p>{words(block.text)}</p>"
        case Bullets():
            text = _bullets(block.items)
        case Notice():
            text = _notice(block)
        case Figures():
            text = _figures(block)
        case Table():
            text = _table(block)
        case Equations():
            text = _equations(block)
        case Bars():
            text = _figure(block, charts.bars(block))
        case Lines():
            text = _figure(block, charts.lines(block))
        case Forest():
            text = _figure(block, charts.forest(block))
    return text


def _bullets(items: tuple[str, ...]) -> str:
    return "<ul>" + "".join(f"<li>{words(item)}</li>" for item in items) + "</ul>"


def _notice(notice: Notice) -> str:
    body = f"<p>{words(notice.items[0])}</p>" if len(notice.items) == 1 else _bullets(notice.items)
    role = "alert" if notice.tone == "bad" else "note"
    return (
        f'<aside class="notice {notice.tone}" role="{role}">'
        f"<strong>{words(notice.title)}</strong>{body}</aside>"
    )


def _figures(block: Figures) -> str:
    items = "".join(
        f"<div><dt>{words(item.label)}</dt><dd>{words(item.value)}"
        f"<small>{words(item.note)}</small></dd></div>"
        for item in block.items
    )
    return f'<dl class="figures">{items}</dl>'


def _figure(chart: Bars | Lines | Forest, drawn: str) -> str:
    if not drawn:
        return ""
    return (
        f"<figure><figcaption><strong>{words(chart.title)}</strong> "
        f"{words(chart.description)}</figcaption>{drawn}</figure>"
    )


def _table(table: Table) -> str:
    marks = table.marks if any(table.marks) else ()
    titles = [
        f'<th scope="col"{_align(at, table)}>{words(title)}</th>'
        for at, title in enumerate(table.columns)
    ]
    if marks:
        titles.append(f'<th scope="col" class="drawn">{words(table.mark_title)}</th>')
    width = ' class="wide"' if len(titles) >= WIDE else ""
    rows = "\n".join(_table_row(table, at, bool(marks)) for at in range(len(table.rows)))
    caption = f'<p class="caption">{words(table.caption)}</p>' if table.caption else ""
    return (
        f'<div class="scroll"><table{width}><thead><tr>{"".join(titles)}</tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></div>{caption}"
    )


def _table_row(table: Table, at: int, has_marks: bool) -> str:
    row = table.rows[at]
    cells = [_cell(table, at, column, text) for column, text in enumerate(row)]
    if has_marks:
        cells.append(f'<td class="drawn">{charts.mark(table.marks[at], table.marks)}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _cell(table: Table, at: int, column: int, text: str) -> str:
    if column == 0:
        return f'<th scope="row"{_align(column, table)}>{words(text)}</th>'
    if table.tones and column == table.tone_column:
        return f'<td class="result {table.tones[at]}">{words(text)}</td>'
    return f"<td{_align(column, table)}>{words(text)}</td>"


def _align(column: int, table: Table) -> str:
    return ' class="n"' if column in table.numeric else ""


def _equations(block: Equations) -> str:
    lines = "".join(_equation(line) for line in block.lines)
    return f'<div class="equations">{_equation(block.formula)}{lines}</div>'


def _equation(equation: Equation) -> str:
    result = f"= {words(equation.result)}" if equation.result else ""
    return (
        f'<div class="equation {equation.arm}"><span class="label">{words(equation.label)}</span>'
        f'<span class="quotient"><span>{words(equation.numerator)}</span>'
        f"<span>{words(equation.denominator)}</span></span>"
        f'<span class="equals">{result}</span></div>'
    )


def words(text: str) -> str:
    """Text made safe for HTML, with numbers tied to their units."""
    return NUMBER_AND_UNIT.sub("\u00a0", escape(text))
