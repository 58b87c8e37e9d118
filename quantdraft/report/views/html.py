"""A report as one self-contained HTML page: nothing is loaded, light and dark, readable on paper.

Pictures are SVG in the page. Scripts, all inside it, put interactive ones in their place; a policy
in the page's head lets no other script run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from pathlib import Path

from quantdraft.record.analysis import TokenFate
from quantdraft.record.wording import NUMBER_AND_UNIT
from quantdraft.report.blocks import (
    Banner,
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
from quantdraft.report.charts import drawing, style
from quantdraft.report.safety import shown_text

STYLE = Path(__file__).parents[1] / "style.css"
SCRIPT = Path(__file__).parent / "page.js"
# JSON inside a script element: nothing in it may close the element or open a comment.
IN_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
CODE = re.compile(r"`([^`<>]+)`")
# `(0.951× to 1.014×)`: a line ends before it, not within it.
INTERVAL = re.compile(r"\([−+]?\d[\d.,]*×? to [−+]?\d[^()]{0,16}\)")
WIDE = 6  # columns from which a table takes the whole width of the page


def render(document: Document) -> str:
    """The whole page."""
    body = (
        f"{_first_screen(document)}\n<main>\n{_sections(document.sections)}\n</main>\n"
        f"<footer>{words(document.footer)}</footer>"
    )
    scripts = (drawing.scripts(), SCRIPT.read_text(encoding="utf-8")) if _has_charts(body) else ()
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{_policy(scripts)}\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_page_title(document)}</title>\n"
        f"<style>\n{_style()}</style>\n</head>\n<body>\n{body}\n"
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + "</body>\n</html>\n"
    )


def _has_charts(body: str) -> bool:
    return '<figure class="chart' in body


def _policy(scripts: tuple[str, ...]) -> str:
    """Only these scripts run, by their hashes; no text in the page can bring another."""
    hashes = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in hashes) or "'none'"
    rules = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'


def _style() -> str:
    light, dark = style.variables(style.LIGHT), style.variables(style.DARK)
    return (
        f":root {{ {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        f"{style.page_rules()}\n{STYLE.read_text(encoding='utf-8')}"
    )


def _page_title(document: Document) -> str:
    verdict = f"{document.banner.word}: " if document.banner else ""
    return escape(shown_text(f"{verdict}{document.title} · quantdraft"))


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
        f"{_number(banner)}"
        f'<p class="why">{words(banner.why)}</p></div>'
    )


def _number(banner: Banner) -> str:
    if not banner.number:
        return ""
    number, measure = words(banner.number), words(banner.measure)
    return f'<p class="number"><strong>{number}</strong> {measure}</p>'


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
        if isinstance(block, Chart) and not block.is_wide:
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
        case Chart():
            text = _chart(block)
        case Passages():
            text = _passages(block)
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


def _chart(chart: Chart) -> str:
    """The drawn picture, its specification for the scripts, and its numbers."""
    spec = json.dumps(chart.spec, sort_keys=True).translate(IN_SCRIPT)
    spoken = escape(shown_text(f"{chart.title}. {chart.description}"))
    return (
        f'<figure class="chart{" wide" if chart.is_wide else ""}" id="chart-{chart.name}">'
        f"<figcaption><strong>{words(chart.title)}</strong> {words(chart.description)}"
        '</figcaption><div class="controls"></div>'
        f'<div class="picture" role="img" aria-label="{spoken}">'
        f"{drawing.svg(chart.spec)}</div>"
        f'<script type="application/json">{spec}</script>'
        f'<details><summary>Numbers<span class="away"> of {words(chart.title)}</span>'
        f"</summary>{_table(chart.data)}</details></figure>"
    )


def _passages(block: Passages) -> str:
    items = "\n".join(_passage(item) for item in block.items)
    return (
        f'<div class="passages"><p class="caption">{words(block.legend)}</p>'
        f'<div class="controls"></div>{items}</div>'
    )


def _passage(passage: Passage) -> str:
    arms = "".join(
        f"<div><h4>{words(name)}</h4>"
        f'<p class="tokens" dir="auto">{_tokens(passage.tokens, fates)}</p></div>'
        for name, fates in passage.arms
    )
    return (
        f'<article class="passage" data-domain="{escape(shown_text(passage.domain))}">'
        f"<h3><bdi>{words(passage.title)}</bdi></h3>"
        f'<p class="caption"><bdi>{words(passage.domain)}</bdi> · {words(passage.note)}</p>'
        f'<p class="before" dir="auto">{words(passage.before)}</p>'
        f'<div class="arms">{arms}</div></article>'
    )


def _tokens(tokens: tuple[str, ...], fates: tuple[TokenFate, ...]) -> str:
    """Every token with its fate as its element, so that it is told apart without colours too."""
    element = {"accepted": "ins", "rejected": "del", "not proposed": "span"}
    pairs = zip(tokens, fates, strict=True)
    return "".join(
        f"<{element[fate]}{_blank(token, fate)}>{escape(shown_text(token))}</{element[fate]}>"
        for token, fate in pairs
    )


def _blank(token: str, fate: TokenFate) -> str:
    """A line through nothing but spaces reads as a rule: it is drawn under them."""
    return ' class="blank"' if fate == "rejected" and not token.strip() else ""


def _table(table: Table) -> str:
    titles = [
        f'<th scope="col"{_align(at, table)}>{words(title)}</th>'
        for at, title in enumerate(table.columns)
    ]
    width = ' class="wide"' if len(titles) >= WIDE else ""
    rows = "\n".join(_table_row(table, at) for at in range(len(table.rows)))
    caption = f'<p class="caption">{words(table.caption)}</p>' if table.caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="table, scrolls sideways">'
        f"<table{width}><thead><tr>{''.join(titles)}</tr></thead><tbody>\n{rows}\n</tbody></table></div>{caption}"
    )


def _table_row(table: Table, at: int) -> str:
    cells = (_cell(table, at, column, text) for column, text in enumerate(table.rows[at]))
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
    return (
        '<div class="equations" tabindex="0" role="group" aria-label="equations, scroll sideways">'
        f"{_equation(block.formula)}{lines}</div>"
    )


def _equation(equation: Equation) -> str:
    result = f"= {words(equation.result)}" if equation.result else ""
    return (
        f'<div class="equation {equation.arm}"><span class="label">{words(equation.label)}</span>'
        f'<span class="quotient"><span>{words(equation.numerator)}</span>'
        f"<span>{words(equation.denominator)}</span></span>"
        f'<span class="equals">{result}</span></div>'
    )


def words(text: str) -> str:
    """Text made safe for HTML, with numbers tied to their units and `code` marked as such."""
    tied = NUMBER_AND_UNIT.sub("\u00a0", escape(shown_text(text)))
    tied = INTERVAL.sub(lambda found: found.group().replace(" ", "\u00a0"), tied)
    return CODE.sub(r"<code>\1</code>", tied)
