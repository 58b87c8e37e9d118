"""A report as text for a terminal or a pipe, verdict first. Charts and long lists are left out."""

from __future__ import annotations

from dataclasses import dataclass

from quantdraft.record.wording import UNDEFINED
from quantdraft.report.blocks import (
    Banner,
    Bullets,
    Chart,
    Document,
    Equations,
    Figures,
    Notice,
    Paragraph,
    Passages,
    Section,
    Table,
)
from quantdraft.report.views import tables
from quantdraft.report.views.markdown import equation_line
from quantdraft.report.views.screen import STYLES, Screen, here
from quantdraft.report.views.view import show_block

BRIEF_LINES = 13  # of a verdict; with the next step and the line that names the report, 15
REASON_LINES, NOTICE_LINES = 4, 3
MIN_NOTE = 24  # columns


def render(document: Document, screen: Screen | None = None) -> str:
    """Return the whole report. screen: where it is shown; without it, what stdout is now"""
    screen = screen or here()
    parts = [*_banner(document.banner, screen)]
    parts.append(screen.wrapped(f"{document.title} · {document.subtitle}"))
    parts += [text for block in document.lead if (text := show_block(block, _Terminal(screen)))]
    shown = [each for each in document.sections if not each.is_detail]
    parts += [text for section in shown if (text := _section(section, screen))]
    return "\n\n".join(parts) + "\n"


def brief(document: Document, screen: Screen | None = None) -> str:
    """Return the verdict, why, and the numbers under it, in at most `BRIEF_LINES` lines."""
    screen = screen or here()
    banner = document.banner
    lines: list[str] = []
    if banner is not None:
        measure = banner.measure.partition(";")[0]  # its interval stands in the reason
        number = "" if banner.number == UNDEFINED else f"  {banner.number} {measure}"
        lines += _cut(f"{banner.word}{number}", 1, screen, _loud(banner))
        lines += _cut(screen.wrapped(banner.why), REASON_LINES, screen)
    lines.append("")
    for block in document.lead:
        if isinstance(block, Figures):
            for each in _figures(block, screen, is_brief=True):
                lines += _cut(each, 1, screen)
    for notice in [each for each in document.lead if isinstance(each, Notice)]:
        for item in notice.items:
            lines += _noticed(notice, item, BRIEF_LINES - len(lines), screen)
    return "\n".join(lines[:BRIEF_LINES])


def _banner(banner: Banner | None, screen: Screen) -> list[str]:
    if banner is None:
        return []
    spaced = " ".join(banner.word) if len(banner.word) <= 5 else banner.word
    word = screen.styled(spaced, _loud(banner))
    return [f"{word}\n{'═' * max(len(spaced), 8)}\n{screen.wrapped(banner.why)}"]


def _loud(banner: Banner) -> str:
    return f"bold {STYLES[banner.tone]}".strip()


def _section(section: Section, screen: Screen) -> str:
    blocks = [text for block in section.blocks if (text := show_block(block, _Terminal(screen)))]
    if not blocks:  # charts alone
        return ""
    title = screen.styled(section.title, "bold")
    rule = "─" * max(2, screen.width - len(section.title) - 4)
    return "\n\n".join([f"── {title} {rule}", *blocks])


@dataclass(frozen=True, slots=True)
class _Terminal:
    """The blocks as lines of text."""

    screen: Screen

    def paragraph(self, block: Paragraph) -> str:
        return self.screen.wrapped(block.text)

    def bullets(self, block: Bullets) -> str:
        return "\n".join(self.screen.wrapped(item, "• ") for item in block.items)

    def notice(self, block: Notice) -> str:
        title = self.screen.wrapped(block.title, "!! ")
        title = self.screen.styled(title, f"bold {STYLES[block.tone]}".strip())
        return "\n".join([title, *(self.screen.wrapped(item, "   ") for item in block.items)])

    def figures(self, block: Figures) -> str:
        return "\n".join(_figures(block, self.screen))

    def table(self, block: Table) -> str:
        return tables.table(block, self.screen)

    def equations(self, block: Equations) -> str:
        lines = map(equation_line, (block.formula, *block.lines))
        width = self.screen.width
        return "\n".join(t if len(t) <= width else self.screen.wrapped(t) for t in lines)

    def chart(self, block: Chart) -> str:
        return ""

    def passages(self, block: Passages) -> str:
        return ""


def _figures(block: Figures, screen: Screen, is_brief: bool = False) -> list[str]:
    """Return each figure with its note beside it; below it where the terminal is narrow.

    is_brief: of a note, the clauses that fit on the line alone
    """
    widest = max((len(item.label) for item in block.items), default=0)
    number = max((len(item.value) for item in block.items), default=0)
    leads = [f"{item.label:<{widest}}  {item.value:>{number}}" for item in block.items]
    if any(len(lead) > screen.width for lead in leads):  # no room to align them
        leads = [f"{item.label}  {item.value}" for item in block.items]
    notes = [item.note for item in block.items]
    if is_brief:
        pairs = zip(notes, leads, strict=True)
        rooms = ((note, screen.width - len(lead)) for note, lead in pairs)
        notes = [_clauses(note, room - 2) if room >= MIN_NOTE else "" for note, room in rooms]
    return [_noted(lead, note, screen) for lead, note in zip(leads, notes, strict=True)]


def _clauses(note: str, room: int) -> str:
    """Return the first clauses of a note that fit into the room; none where the first does not.

    A list, which a colon opens, is kept whole.
    """
    ends = ("; ",) if ":" in note else ("; ", ", ", " than ")
    while note and len(note) > room:
        note = max((note.rpartition(end)[0] for end in ends), key=len)
    return note


def _noted(lead: str, note: str, screen: Screen) -> str:
    if not note:
        return lead
    if screen.width - len(lead) < MIN_NOTE:
        return f"{lead}\n{screen.wrapped(note, '    ')}"
    return screen.wrapped(note, f"{lead}  ")


def _noticed(notice: Notice, item: str, room: int, screen: Screen) -> list[str]:
    """Return an alarm or a doubt, cut where it is long; anything else whole or not at all."""
    said = screen.wrapped(f"{notice.title}: {item}", "! ")
    if notice.tone == "plain" and len(said.splitlines()) > room:
        return []
    most = room if notice.tone == "plain" else min(room, NOTICE_LINES)
    return _cut(said, most, screen, STYLES[notice.tone])


def _cut(text: str, room: int, screen: Screen, style: str = "") -> list[str]:
    """Return the first lines of a text, each within the width; … where something is left out."""
    lines = text.splitlines()
    kept = lines[: max(0, room)]
    if kept and (len(kept) < len(lines) or len(kept[-1]) > screen.width):
        kept[-1] = f"{kept[-1][: screen.width - 2].rsplit(' ', 1)[0].rstrip(' ,;:')} …"
    return [screen.styled(line, style) for line in kept]
