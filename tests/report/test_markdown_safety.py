"""Strangers' text in Markdown and HTML: it is shown, and nothing in it lives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from quantdraft.record import Alarm
from quantdraft.report.blocks import Chart, Document, Passage, Passages, Section
from quantdraft.report.card import model_card
from quantdraft.report.views import html, markdown
from quantdraft.report.views.escaping import escape, escape_html
from tests.example_evaluation import evaluation
from tests.pages import comparison, document

OWN_HTML = re.compile(r"</?(?:details|summary)>|<code>|</code>")
# What a host turns into a link or a mention once the Markdown is read.
LIVE = re.compile(r"://|www\.|@\w|#\d|\$")
HOSTILE = (
    "![x](https://evil.example/a.png)",
    "[x](javascript:alert(1)) ![a][b] [b]: https://evil.example",
    "<img src=x onerror=alert(1)><script>alert(1)</script><!-- a -->",
    "<https://evil.example> https://evil.example www.evil.example a@evil.example",
    "@everyone please read #1 evil/repo#2 GH-3 $x$",
    "# heading\n\n## more\n===\n---\n> said\n- a\n1. b\n\n    code\n```\n~~~",
    "a | b |\n| --- | --- |\n| *c* | __d__ ~~e~~ |",
    "``` ` `a`https://evil.example` `` ![x](https://evil.example/`y`) `b``[c](d)`",
    "\\![x](y) \\\\[x](y) \\`a\\` &#33;&#91;x](y) &lt;b&gt;",
    "`<img src=x>` `|` `a*b` `https://evil.example`",
    "</summary></details><img src=x>\n\n[x](y)",
)


def tokens(text: str) -> Iterator[Token]:
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        yield token
        yield from token.children or ()


def require_dead(text: str) -> None:
    """Fail where a renderer would make of the text more than words, code and what is ours."""
    for token in tokens(text):
        if token.type == "image":
            assert re.fullmatch(r"figures/[\w-]+\.svg", str(token.attrs["src"]))
        assert token.type not in {"link_open", "s_open", "code_block"}, token
        if token.type.startswith("html_"):
            inside = re.sub(r"<code>.*?</code>", "", token.content)
            assert "<" not in OWN_HTML.sub("", inside), token.content
            assert not LIVE.search(inside), token.content
        if token.type == "text":
            assert not LIVE.search(token.content), token.content


def poisoned(value: Any, text: str) -> Any:
    """The same page, with a stranger's words before and after each of its texts."""
    if isinstance(value, str):
        return f"{text} {value} {text}"
    if isinstance(value, Chart):
        return replace(
            value,
            title=poisoned(value.title, text),
            description=poisoned(value.description, text),
            data=poisoned(value.data, text),
        )
    if isinstance(value, tuple):
        return tuple(poisoned(each, text) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        kept = {"tone", "tones", "numeric", "tone_column", "charts"}
        if isinstance(value, Passage):
            names = tuple((poisoned(name, text), fates) for name, fates in value.arms)
            value = replace(value, arms=names)
            kept |= {"arms"}
        found = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        return replace(value, **{k: poisoned(v, text) for k, v in found.items() if k not in kept})
    return value


@cache
def page() -> Document:
    """A page with one block of every kind, among them what an evaluation's has."""
    passage = Passage("p", "d", "n", "b", ("a", "b"), (("baseline", ("accepted", "rejected")),))
    built = document(evaluation())
    found = [*built.lead, *(block for section in built.sections for block in section.blocks)]
    kinds = tuple({type(block): block for block in found}.values())
    assert len(kinds) >= 6
    read = Section("Read", (Passages((passage,), "legend"),), is_detail=True)
    return replace(built, lead=(), sections=(Section("All", kinds), read))


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_of_a_stranger_lives_in_markdown(text: str) -> None:
    built = page()
    made = poisoned(built, text)
    assert made.title != built.title
    shown = markdown.render(made)
    require_dead(shown)
    kinds = ("heading_open", "table_open", "tr_open", "td_open", "bullet_list_open", "hr")
    ordered = [t.type for t in tokens(shown) if t.type in (*kinds, "ordered_list_open")]
    assert ordered == [t.type for t in tokens(markdown.render(built)) if t.type in kinds]


def test_what_is_ours_passes_the_same_check() -> None:
    require_dead(markdown.render(document(evaluation())))


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_of_a_stranger_lives_in_a_comparison_or_a_card(text: str) -> None:
    made = evaluation()
    verdict = replace(made.verdict, alarms=(Alarm(text, text),), to_settle=text)
    hostile = replace(made, name=text, verdict=verdict)
    require_dead(markdown.render(comparison([hostile, evaluation("int4")])))
    recipe = {"name": text, "summary": text, "scheme": text}
    card = model_card(
        text,
        {"recipe": recipe, "draft": {"name": text}},
        hostile,
        engine="vllm",
        launch=f"vllm serve '{text}'",
        target=f"`{text}` (revision {text})",
        notes=(text,),
        warnings=(text,),
        seen=(text,),
    )
    require_dead(card[card.index("\n---\n") + 5 :])


@pytest.mark.parametrize("text", HOSTILE)
def test_words_survive_and_only_their_marks_are_dead(text: str) -> None:
    def words(shown: str) -> list[str]:
        return re.findall(r"\w+", shown)

    seen = "".join(t.content for t in tokens(escape(text)) if t.type in {"text", "code_inline"})
    assert words(seen.replace("ˋ", "`")) == words(text)
    assert escape("-3 % at k = 4: int4_gptq, a < b & c") == "-3 % at k = 4: int4_gptq, a &lt; b & c"
    assert escape("see `quantdraft check`") == "see `quantdraft check`"
    assert escape_html("a@b <i>") == "<code>a@b</code> &lt;i&gt;"


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        assert not {name for name, _ in attrs} & {"href", "src", "onerror", "onload"}, (tag, attrs)


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_of_a_stranger_lives_in_html(text: str) -> None:
    elements = _Elements()
    elements.feed(html.render(poisoned(page(), text)))
    assert not {"img", "iframe", "object", "a", "link"} & set(elements.found)
    clean = _Elements()
    clean.feed(html.render(page()))
    assert elements.found.count("script") == clean.found.count("script")
