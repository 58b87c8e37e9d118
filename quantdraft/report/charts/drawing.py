"""Specifications drawn as SVG, and the scripts that make them interactive. No download.

vl-convert holds Vega, Vega-Lite and vega-embed; it draws without a browser, in a process of
its own. Every function raises DrawingError where that fails.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, lru_cache
from html import escape
from typing import Any

from quantdraft.errors import DrawingError
from quantdraft.report.charts import renderer, style
from quantdraft.report.charts.style import LIGHT, file_rules
from quantdraft.report.safety import shown_text

# Of the Vega-Lite whose schema Altair checks specifications against.
VEGA_LITE = "6.4"
SNIPPET = "window.vegaEmbed = vegaEmbed;"


def svg(spec: Mapping[str, Any]) -> str:
    """Return the chart as SVG, transparent, in the light colours."""
    missing = style.altair()
    if isinstance(missing, style.Undrawn):
        raise DrawingError(missing.reason)
    return _drawn(json.dumps(spec))


@lru_cache(maxsize=64)
def _drawn(spec: str) -> str:
    """Return the SVG of a specification, drawn once for page and file."""
    return renderer.request({"spec": spec, "version": VEGA_LITE})


def svg_file(spec: Mapping[str, Any], title: str) -> str:
    """Return the SVG of a file: with paper and title, and dark where the reader's screen is."""
    opening, _, drawn = svg(spec).partition(">")
    paper = f'<rect width="100%" height="100%" fill="{LIGHT["paper"]}"/>'
    head = f"<title>{escape(shown_text(title))}</title><style>{file_rules()}</style>"
    return f"{opening}>{head}{paper}{drawn}\n"


@cache
def scripts() -> str:
    """Return Vega, Vega-Lite and vega-embed as one script that sets `window.vegaEmbed`."""
    bundle = renderer.request({"snippet": SNIPPET, "version": VEGA_LITE})
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")
