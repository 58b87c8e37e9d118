"""Change single values inside valid records: each is refused by name, or every view is drawn.

    python -m tests.campaigns.record_values [--changes N] [--draw N] [--seed S] [--output DIR]

Every field of the example records is changed in every way of WAYS that applies to it: null, another
type, negative, huge, not a number, an empty list, a list one longer or shorter, a key twice, an
unknown arm or k, another text, ends swapped, missing. `--changes` takes so many of them by chance.
A record that is read all the same is drawn in every view (`record_views`), with --draw N one in N.
A crash is an exception that is no QuantDraftError, a message of several lines, a refusal that names
no field, or a view with a number that is none. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from quantdraft.common.files import write_json, write_text
from quantdraft.errors import QuantDraftError
from quantdraft.judge.analysis import analyse
from quantdraft.record import Evaluation, read_evaluation
from tests.campaigns.hostile import is_one_line
from tests.campaigns.record_views import (
    NONSENSE,
    Views,
    bench_views,
    evaluation_views,
    without_pictures,
)

ROOT = Path(__file__).parents[2]
Place = tuple[str | int, ...]
OF_EACH = 3  # entries of a list that are changed: the first, one in the middle, the last
WITH_ALTAIR = 10  # one drawing in so many makes the charts' specifications too
MISSING = object()


class Twice(dict[str, Any]):
    """An object that is written with its first key twice."""


@dataclass(frozen=True)
class Seed:
    """A valid record, and what draws its views from a file."""

    name: str
    record: Any
    views: Callable[[Path], Views]


@dataclass
class Outcome:
    """What became of one record's changes."""

    name: str
    changes: int = 0
    refused: int = 0
    read: int = 0
    drawn: int = 0
    crashes: int = 0
    views: Counter[str] = field(default_factory=Counter)
    refused_views: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)


def seeds(few: bool = False) -> list[Seed]:
    """Measured records, hand-made ones that hold what those lack, the oldest, and benches."""
    from tests.example_evaluation import evaluation, gridded, unmeasured
    from tests.judge.test_served import served
    from tests.report.test_bench import bench, point

    def made(name: str, record: Evaluation) -> Seed:
        return Seed(name, plain(record), lambda path: evaluation_views(path, record))

    def stored(name: str, path: Path) -> Seed:
        sound = read_evaluation(path)
        text = path.read_text(encoding="utf-8")
        return Seed(name, json.loads(text), lambda changed: evaluation_views(changed, sound))

    examples, oldest = ROOT / "reports" / "example", ROOT / "tests" / "records"
    benched = Seed("bench", plain(bench(point(), point(batch_size=8))), bench_views)
    measured = stored("int4, measured", examples / "int4" / "evaluation.json")
    if few:
        return [measured, benched]
    return [
        measured,
        stored("fp8, not timed", examples / "fp8" / "evaluation.json"),
        stored("of version 0.1.0", oldest / "evaluation-0.1.0.json"),
        made("a grid, analysed", analyse(gridded())),
        made("served", analyse(replace(evaluation(), served=served()))),
        made("served, not analysed", replace(unmeasured(), served=served())),
        benched,
        Seed(
            "bench of version 0.1.0",
            json.loads((oldest / "bench-0.1.0.json").read_text(encoding="utf-8")),
            bench_views,
        ),
    ]


def plain(record: Any) -> Any:
    """Return a record as its file has it."""
    return json.loads(json.dumps(asdict(record)))


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Yield the place of every value; of a long list, of OF_EACH entries."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*at, key))
    elif isinstance(value, list):
        chosen = sorted({0, len(value) // 2, len(value) - 1}) if len(value) > OF_EACH else None
        for number in range(len(value)) if chosen is None else chosen:
            yield from places(value[number], (*at, number))


def ways(value: Any) -> dict[str, Any]:
    """Return what may stand in a value's place, by the kind of change."""
    found: dict[str, Any] = {"null": None, "missing": MISSING}
    if isinstance(value, bool):
        return found | {"another": not value, "a text": "yes", "a list": [value]}
    if isinstance(value, int | float):
        found |= {"zero": 0, "negative": -abs(value or 1), "huge": 1e300, "a text": "x"}
        found |= {"large": value * 2**40 + 2**40, "one more": value + 1, "a half": value / 2}
        found |= {"not a number": float("nan"), "infinite": float("inf"), "a list": [value]}
        return found
    if isinstance(value, str):
        found |= {"empty": "", "another text": "zebra", "hostile": "</script>\x1b[31m\n|`"}
        return found | {"a number": 7, "a list": [value]}
    if isinstance(value, list):
        found |= {"an object": {}, "a text": "x"}
        if value:
            longer = {"empty": [], "one longer": [*value, value[-1]], "one shorter": value[:-1]}
            found |= longer | {"turned": value[::-1]} | {"others": [None, *value[1:]]}
        return found
    if isinstance(value, dict):
        found |= {"empty": {}, "a list": [], "an unknown key": {**value, "zebra": 1}}
        if value:
            name, inner = next(iter(value.items()))
            rest = {k: v for k, v in value.items() if k != name}
            found |= {"a key twice": Twice(value), "another key": {"99": inner, **rest}}
        if {"low", "high"} <= set(value):
            found["ends swapped"] = {**value, "low": value["high"], "high": value["low"] - 1e-3}
    return found


def changes(seed: Seed) -> list[tuple[Place, str]]:
    """Return every change of a record: where, and which."""
    return [(place, way) for place in places(seed.record) for way in ways(_at(seed.record, place))]


def some_changes(seed: Seed, number: int, rng: random.Random) -> list[tuple[Place, str]]:
    """Return changes by chance: each at any place, and any of those that apply there."""
    at = rng.choices(list(places(seed.record)), k=number)
    return [(place, rng.choice(list(ways(_at(seed.record, place))))) for place in at]


def written(seed: Seed, place: Place, way: str) -> str:
    """Return the text of a record with one value changed."""
    record = json.loads(json.dumps(seed.record))
    holder = _at(record, place[:-1])
    new = ways(holder[place[-1]])[way]
    if new is MISSING:
        del holder[place[-1]]
    elif isinstance(new, Twice):
        holder[place[-1]] = "«twice»"
        name, inner = next(iter(new.items()))
        whole = json.dumps(dict(new))
        doubled = f"{{{json.dumps(name)}: {json.dumps(inner)}, {whole[1:]}"
        return json.dumps(record).replace(json.dumps("«twice»"), doubled)
    else:
        holder[place[-1]] = new
    return json.dumps(record)


def _at(record: Any, place: Place) -> Any:
    for key in place:
        record = record[key]
    return record


def campaign(
    known: Sequence[Seed],
    num_changes: int | None,
    seed: int,
    only: str | None = None,
    one_in: int = 1,
) -> Iterator[Outcome]:
    """Make the changes of each record, all or so many by chance, and yield what became of them."""
    logging.disable(logging.WARNING)
    chosen = [each for each in known if only in {None, each.name}]
    sizes = {each.name: sum(1 for _ in places(each.record)) for each in chosen}
    total = sum(sizes.values())
    with tempfile.TemporaryDirectory() as name:
        for each in chosen:
            rng = random.Random(f"{seed}:{each.name}")
            if num_changes is None:
                of_this = changes(each)
            else:
                share = max(1, round(num_changes * sizes[each.name] / total))
                of_this = some_changes(each, share, rng)
            outcome = Outcome(each.name)
            for place, way in of_this:
                views = _read(each, place, way, Path(name) / "record.json", outcome)
                if views is not None and outcome.read % one_in == 1 % one_in:
                    with_altair = rng.randrange(WITH_ALTAIR) == 0
                    _draw_all(views, _told(place, way), outcome, with_altair)
            yield outcome


def _told(place: Place, way: str) -> str:
    return f"{'.'.join(map(str, place))}: {way}"


def _read(seed: Seed, place: Place, way: str, path: Path, outcome: Outcome) -> Views | None:
    """Return what draws the changed record; None where it is refused, as it should be or not."""
    outcome.changes += 1
    path.write_text(written(seed, place, way), encoding="utf-8")
    try:
        views = seed.views(path)
    except QuantDraftError as error:
        if is_one_line(error) and names_a_field(str(error)):
            outcome.refused += 1
        else:
            _found(outcome, _told(place, way), error, "a refusal that does not say which field")
        return None
    except Exception as error:
        _found(outcome, _told(place, way), error, type(error).__name__)
        return None
    outcome.read += 1
    return views


def _draw_all(views: Views, told: str, outcome: Outcome, with_altair: bool) -> None:
    crashes = outcome.crashes
    with without_pictures(with_altair):
        for name, draw_view in views.items():
            _draw(name, draw_view, told, outcome)
    outcome.drawn += outcome.crashes == crashes


def _draw(name: str, draw_view: Callable[[], str], told: str, outcome: Outcome) -> None:
    try:
        text = draw_view()
    except QuantDraftError as error:  # runs that do not belong together are not compared
        outcome.refused_views[name] += 1
        if not is_one_line(error):
            _found(outcome, f"{told} ({name})", error, "a message of several lines")
        return
    except Exception as error:
        _found(outcome, f"{told} ({name})", error, type(error).__name__)
        return
    outcome.views[name] += 1
    nonsense = NONSENSE.search(text)
    if nonsense is not None:
        start = max(0, nonsense.start() - 60)
        error = ValueError(text[start : nonsense.end() + 20])
        _found(outcome, f"{told} ({name})", error, "nonsense on the page")


def names_a_field(message: str) -> bool:
    """Return whether a refusal names a field of the record, or the JSON it could not read."""
    field_named = re.search(r"(?:\.json'|can be used): [a-z_]+(?:\.[^:]+)*: ", message)
    read_by_key = re.search(r"the key '.*' twice|schema version", message)
    return bool(field_named or read_by_key)


def _found(outcome: Outcome, told: str, error: BaseException, kind: str) -> None:
    outcome.crashes += 1
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/quantdraft/" in frame.filename]
    where = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    outcome.findings.setdefault(f"{kind}{where}", f"{told}: {str(error)[:300]!r}")


def as_record(outcomes: Sequence[Outcome], seed: int, line: str) -> dict[str, Any]:
    """Return totals, and the same for each record."""
    keys = ("changes", "refused", "read", "drawn", "crashes")
    totals = {key: sum(getattr(outcome, key) for outcome in outcomes) for key in keys}
    views = sum((outcome.views for outcome in outcomes), Counter[str]())
    return {
        "line": line,
        **totals,
        "seed": seed,
        "views": dict(views),
        "by_record": {t.name: {key: getattr(t, key) for key in keys} for t in outcomes},
    }


def page(record: dict[str, Any]) -> str:
    """Return the record of a campaign in Markdown."""
    rows = [
        f"| {name} | {each['changes']:,} | {each['refused']:,} | {each['read']:,} | "
        f"{each['drawn']:,} | "
        f"{each['crashes']} |"
        for name, each in record["by_record"].items()
    ]
    views = ", ".join(f"{name} {number:,}" for name, number in record["views"].items())
    return "\n".join(
        [
            "# Changed records",
            "",
            f"`{record['line']}`: {record['changes']:,} records with one value changed, "
            f"{record['refused']:,} refused by the name of a field, {record['read']:,} read and "
            f"{record['drawn']:,} of these drawn in every view, {record['crashes']} crashes.",
            "",
            "| record | changes | refused by name | read | drawn | crashes |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"Views drawn: {views}.",
            "",
            *str(__doc__).split("\n\n")[2].splitlines(),
            "",
        ]
    )


def main() -> int:
    """Run, print a line a record and every finding, then the summary; 1 where there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, help="so many by chance; all without it")
    parser.add_argument("--draw", type=int, default=1, help="one in so many of those read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one record by its name")
    parser.add_argument("--output", type=Path, help="where records.json and records.md go")
    given = parser.parse_args()
    outcomes = []
    started = time.perf_counter()
    for outcome in campaign(seeds(), given.changes, given.seed, given.only, given.draw):
        outcomes.append(outcome)
        print(
            f"{outcome.name:<24} {outcome.changes:>6} changes, {outcome.refused:>6} refused, "
            f"{outcome.read:>6} read, {outcome.drawn:>6} drawn, {outcome.crashes:>4} crashes, "
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )
        for where, what in outcome.findings.items():
            print(f"    {where}\n        {what}", flush=True)
    some = "" if given.changes is None else f" --changes {given.changes}"
    some += "" if given.draw == 1 else f" --draw {given.draw}"
    line = f"python -m tests.campaigns.record_values{some} --seed {given.seed}"
    record = as_record(outcomes, given.seed, line)
    if given.output is not None:
        write_json(given.output / "records.json", record)
        write_text(given.output / "records.md", page(record))
    print(json.dumps(record))
    return 1 if record["crashes"] else 0


if __name__ == "__main__":
    sys.exit(main())
