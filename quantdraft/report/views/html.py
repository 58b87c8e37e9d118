"""A report as one self-contained HTML page: nothing is loaded, light and dark, readable on paper.

The page is made by the templates beside this module. Charts are SVG in the page; scripts, all
inside it, put interactive ones in their place. A policy in the page's head lets no other script
run and nothing be fetched.

Nothing gets into the page unescaped: every text that a template writes passes through `words`
unless the template names another filter, and what is no text is escaped by jinja2.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from quantdraft.record.wording import NUMBER_AND_UNIT
from quantdraft.report.blocks import Block, Chart, Document, Table
from quantdraft.report.charts import drawing, style
from quantdraft.report.safety import shown_text
from quantdraft.report.views.view import View, show_block

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
# JSON inside a script element: nothing in it may close the element or open a comment.
IN_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
CODE = re.compile(r"`([^`<>]+)`")
# `(0.951× to 1.014×)`: a line ends before it, not within it.
INTERVAL = re.compile(r"\([−+]?\d[\d.,]*×? to [−+]?\d[^()]{0,16}\)")
WIDE = 6  # columns from which a table takes the whole width of the page
LONG = 14  # characters of a cell that leave no room for a third column on a phone


def render(document: Document) -> str:
    """Return the whole page."""
    scripts = (drawing.scripts(), _asset("page.js")) if document.charts else ()
    return (
        _environment()
        .get_template("page.html")
        .render(
            document=document,
            policy=_markup(_policy(scripts)),
            style=_markup(_style()),
            scripts=[_markup(script) for script in scripts],
        )
    )


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: words(value) if type(value) is str else value,
    )
    made.filters |= {"plain": _plain, "svg": _svg, "in_script": _in_script, "in_rows": _in_rows}
    made.filters["table_class"] = _table_class
    blocks: View
    made.globals["show_block"] = lambda block: show_block(block, blocks)
    blocks = cast(View, made.get_template("blocks.html").module)
    return made


def words(text: str) -> Markup:
    """Return text made safe for HTML, with numbers tied to their units and `code` marked."""
    tied = NUMBER_AND_UNIT.sub("\u00a0", escape(shown_text(text)))
    tied = INTERVAL.sub(lambda found: found.group().replace(" ", "\u00a0"), tied)
    return _markup(CODE.sub(r"<code>\1</code>", tied))


def _plain(text: str) -> Markup:
    """Return text made safe and not changed further, for attributes and tokens."""
    return _markup(escape(shown_text(text)))


def _svg(spec: Mapping[str, Any]) -> Markup:
    return _markup(drawing.svg(spec))


def _in_script(spec: Mapping[str, Any]) -> Markup:
    return _markup(json.dumps(spec, sort_keys=True).translate(IN_SCRIPT))


def _markup(html: str) -> Markup:
    from markupsafe import Markup

    return Markup(html)


def _in_rows(blocks: Sequence[Block]) -> list[tuple[bool, list[Block]]]:
    """Return blocks in rows, those that are charts of half a page together."""
    by_kind = groupby(blocks, lambda block: isinstance(block, Chart) and not block.is_wide)
    return [(is_chart, list(row)) for is_chart, row in by_kind]


def _table_class(table: Table) -> Markup:
    """Return what a table becomes: as wide as the page, and on a phone a card for each row."""
    num_columns = len(table.columns)
    is_long = any(len(cell) > LONG for row in table.rows for cell in row[1:])
    found = {"wide": num_columns >= WIDE, "cards": num_columns > 2 and is_long}
    names = " ".join(name for name, holds in found.items() if holds)
    return _markup(f' class="{names}"' if names else "")


def _policy(scripts: Sequence[str]) -> str:
    """Return the rules by which only these scripts run, known by their hashes."""
    hashes = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _style() -> str:
    light, dark = style.variables(style.LIGHT), style.variables(style.DARK)
    return (
        f":root {{ {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        f"{style.page_rules()}\n{_asset('style.css')}"
    )


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
