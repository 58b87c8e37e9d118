"""The colours of the report, light and dark, by what they mean. Specifications hold the light ones.

The page and every SVG file map each light colour to its dark one in a style sheet, by the value of
the attribute: one picture serves both, and a viewer that knows no style sheets shows the light one.
"""

from __future__ import annotations

LIGHT = {
    "paper": "#ffffff",
    "raised": "#f6f7f8",
    "ink": "#16191d",
    "quiet": "#5c6670",
    "rule": "#dfe3e7",
    "baseline": "#7d8894",
    "candidate": "#1f5fbf",
    "good": "#17713f",
    "bad": "#b02a25",
    "doubt": "#8a5a00",
    "orange": "#b8590b",
    "violet": "#8a3ea3",
    "teal": "#0f7c86",
    "olive": "#6b6f00",
    "none": "#e9ecef",
}
DARK = {
    "paper": "#14171a",
    "raised": "#1c2024",
    "ink": "#e6e9ec",
    "quiet": "#a3adb7",
    "rule": "#30363c",
    "baseline": "#98a3af",
    "candidate": "#6ea8fe",
    "good": "#56c288",
    "bad": "#f27d76",
    "doubt": "#e0ac4a",
    "orange": "#f0a160",
    "violet": "#cf94e4",
    "teal": "#55c4cf",
    "olive": "#c5c95b",
    "none": "#262b30",
}
# Of recipes side by side, in turn; the baseline has a colour of its own.
HUES = ("candidate", "orange", "good", "violet", "bad", "teal", "olive", "doubt")


def variables(colours: dict[str, str]) -> str:
    """CSS custom properties, `--ink: #16191d; …`."""
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


def page_rules() -> str:
    """Rules that give every drawn light colour the page's own of that meaning."""
    return "\n".join(
        f'svg [{what}="{value}"] {{ {what}: var(--{name}); }}'
        for name, value in LIGHT.items()
        for what in ("fill", "stroke")
    )


def file_rules() -> str:
    """The same for an SVG file that stands alone."""
    rules = " ".join(
        f'[{what}="{value}"] {{ {what}: {DARK[name]}; }}'
        for name, value in LIGHT.items()
        for what in ("fill", "stroke")
    )
    return f"@media (prefers-color-scheme: dark) {{ {rules} }}"
