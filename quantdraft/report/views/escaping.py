"""Text of strangers in Markdown, shown as it was written: no image, link, mention or HTML in it.

Hosts such as GitHub make links of bare addresses and mentions after Markdown is read, and a
backslash does not stop them. They leave code alone, so a word that would become one is shown as
code.
"""

from __future__ import annotations

import re
from html import escape as escape_tags

from quantdraft.report.safety import shown_text

# In code nothing is escaped, so what would need it is no code: a bar ends a cell of a table.
CODE = re.compile(r"`([^`|<>\\*]+)`")
# A bare address, a mention, the number of an issue, a formula.
_LIVE = re.compile(r"://|www\.|mailto:|xmpp:|@\w|#\d|\bGH-\d|\$", re.IGNORECASE)
_WORDS = re.compile(r"([\s|]+)")
# An underscore inside a word is no mark, and `&` only before the name of a character.
_MARKS = re.compile(r"[\\`*\[\]~|]|(?<![^\W_])_|_(?![^\W_])")
_TAGS = re.compile(r"<|&(?=#?\w+;)")
# At the beginning of a line: a heading, a quotation, a list, a rule.
_START = re.compile(r"(?=>|[#+=-](?:[\s#+=>-]|$))|(?<=\d)(?=[.)](?:\s|$))")


def escape(text: str, *, is_cell: bool = False) -> str:
    """Return a text on one line, none of its marks read as Markdown; `code` stays code.

    is_cell: it stands in a table, where nothing begins a heading or a list
    """
    flat = " ".join(shown_text(text).split())
    parts = CODE.split(flat)  # every second one is the inside of a pair of backticks
    made = "".join(f"`{part}`" if at % 2 else _plain(part) for at, part in enumerate(parts))
    number = re.match(r"\d*", made)
    end = number.end() if number else 0
    is_mark = not is_cell and _START.match(made, end)
    return f"{made[:end]}\\{made[end:]}" if is_mark else made


def escape_html(text: str) -> str:
    """Return a text on one line for a place in HTML, where no Markdown is read."""
    flat = " ".join(shown_text(text).split())
    words = _WORDS.split(flat)
    return "".join(
        f"<code>{escape_tags(word)}</code>" if _LIVE.search(word) else escape_tags(word)
        for word in words
    )


def fence(text: str, language: str = "text") -> str:
    """Return a block of code that no run of backticks in it can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text}\n{marks}"


def _plain(text: str) -> str:
    return "".join(map(_word, _WORDS.split(text)))


def _word(word: str) -> str:
    if _LIVE.search(word):
        return f"`{word.replace('`', 'ˋ')}`"
    return _TAGS.sub(lambda found: escape_tags(found.group()), _MARKS.sub(r"\\\g<0>", word))
