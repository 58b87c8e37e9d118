"""Parts of a traffic by conversation: some to calibrate on, the others to judge on.

A conversation's place is a hash of its name. The conversations are sorted by it and cut, so that a
part is the same whenever the same file is read, and no conversation lies in two parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from quantdraft.common.documents import read_json_object
from quantdraft.errors import QuantDraftError
from quantdraft.traffic.responses import Response

SPLIT_FILE = "split.json"  # beside the files that a traffic was split into
HALF = 0.5
# Of the conversations that a training sees, those by which it chooses; at most so many.
SELECTION_SHARE, MAX_SELECTION = 0.2, 32


@dataclass(frozen=True, slots=True)
class Part:
    """The conversations of one file whose places lie in one range."""

    of_sha256: str  # of the whole file
    first: str  # the least place; "": from the start
    end: str | None  # the least place beyond it; None: to the end
    share: float
    num_conversations: int
    num_in_file: int

    def holds(self, place: str) -> bool:
        """Return whether a conversation of this place belongs to it."""
        return self.first <= place and (self.end is None or place < self.end)

    def as_record(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def place_of(conversation: str) -> str:
    """Return where a conversation lies among all: 16 hexadecimal digits."""
    name = conversation.encode("utf-8", "surrogatepass")
    return hashlib.sha256(b"quantdraft part\0" + name).hexdigest()[:16]


def conversation_of(response: Response) -> str:
    """Return what a response is kept together with; by itself where the log names nothing."""
    return response.conversation or response.prompt_id


def parts_of(places: Iterable[str], shares: Sequence[float], sha256: str) -> list[Part] | None:
    """Return one part for each share, none of them empty; None where conversations are too few.

    places: of the conversations of a file, in any order, repeats allowed
    shares: of the conversations; they add up to 1
    """
    distinct = sorted(set(places))
    if len(distinct) < len(shares):
        return None
    cuts = [0, *(round(total * len(distinct)) for total in accumulate(shares))]
    cuts[-1] = len(distinct)
    for at in range(1, len(shares)):  # no part is empty
        cuts[at] = min(max(cuts[at], cuts[at - 1] + 1), len(distinct) - len(shares) + at)
    ends = ["", *(distinct[cut] for cut in cuts[1:-1])]
    return [
        Part(
            of_sha256=sha256,
            first=ends[at],
            end=ends[at + 1] if at + 1 < len(shares) else None,
            share=share,
            num_conversations=cuts[at + 1] - cuts[at],
            num_in_file=len(distinct),
        )
        for at, share in enumerate(shares)
    ]


def calibration_part(responses: Sequence[Response], share: float, sha256: str) -> Part | None:
    """Return the part of a traffic that is calibrated on; None where it cannot be parted."""
    places = (place_of(conversation_of(each)) for each in responses)
    parts = parts_of(places, (share, 1 - share), sha256)
    return None if parts is None else parts[0]


class TrainingParts(NamedTuple):
    """A traffic in the parts that a training has: on one it trains, by one it chooses its best."""

    training: Part
    selection: Part
    judging: Part | None  # None where all of the file may be seen

    @property
    def seen(self) -> Part:
        """What is trained on or chosen by: nothing of it may be judged on."""
        return replace(
            self.training,
            end=self.selection.end,
            share=round(self.training.share + self.selection.share, 12),
            num_conversations=self.training.num_conversations + self.selection.num_conversations,
        )


def training_parts(
    responses: Sequence[Response], share: float, sha256: str
) -> TrainingParts | None:
    """Return the parts of a traffic; None where its conversations are too few to be parted.

    share: of the conversations, to be seen; those are the conversations that `calibration_part`
        gives at the same share, so that trained and calibrated drafts are judged on the same ones
    """
    places = {place_of(conversation_of(each)) for each in responses}
    chosen_by = share * min(SELECTION_SHARE, MAX_SELECTION / max(1, round(share * len(places))))
    shares = (share - chosen_by, chosen_by, *((1 - share,) if share < 1 else ()))
    found = parts_of(places, shares, sha256)
    return None if found is None else TrainingParts(*found, *([None] if share == 1 else []))


def part_from(record: Mapping[str, Any] | None) -> Part | None:
    """Return a part as a record names it; None for a record of another kind, or of none."""
    try:
        found = Part(**(record or {}))
    except TypeError:
        return None
    texts = (found.of_sha256, found.first, *([] if found.end is None else [found.end]))
    return found if all(isinstance(each, str) for each in texts) else None


def split_part(path: Path, sha256: str) -> Part | None:
    """Return which part of a traffic a file is that `quantdraft traffic --split` wrote."""
    try:
        files = read_json_object(path.parent / SPLIT_FILE).get("parts")
    except (QuantDraftError, OSError):
        return None
    known = files.values() if isinstance(files, dict) else ()
    mine = (each for each in known if isinstance(each, dict) and each.get("sha256") == sha256)
    found = next(mine, {}).get("part")
    return part_from(found) if isinstance(found, dict) else None
