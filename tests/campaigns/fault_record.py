"""Write what a fault campaign counted as JSON and as a table, beside those of other commands."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quantdraft.common.files import write_json, write_text

# No charts: the drawing package is hidden, or `ulimit -v` lets its engine reserve too little.
KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "full disk", "out of memory", "no charts")
COUNTS = ("kills", "lost", "half_written", "wrong")
SUMS = (*COUNTS, "tracebacks", "ended_all_the_same", "resumed")


@dataclass(slots=True)
class Tally:
    """What happened so far."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)  # by command and kind
    survived: Counter[tuple[str, str]] = field(default_factory=Counter)  # strikes it ended despite
    lost: list[str] = field(default_factory=list)
    half_written: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)  # where one line was due
    num_resumed: int = 0

    @property
    def complaints(self) -> list[str]:
        """All of them, with a word for the kind."""
        kinds = ("lost", "half_written", "wrong", "tracebacks")
        return [f"{kind}: {each}" for kind in kinds for each in getattr(self, kind)]


def as_record(tally: Tally, seed: int, commands: list[str]) -> dict[str, Any]:
    """Everything that was found."""
    details = {
        kind: getattr(tally, kind) for kind in ("lost", "half_written", "wrong", "tracebacks")
    }
    kills = sum(tally.kills.values())
    found = {
        "line": f"python -m tests.campaigns.faults --kills {kills} --seed {seed} "
        f"--commands {','.join(commands)}",
        "date": datetime.now(UTC).date().isoformat(),
        "kills": kills,
        **{kind: len(complaints) for kind, complaints in details.items()},
        "ended_all_the_same": sum(tally.survived.values()),
        "resumed": tally.num_resumed,
        "by_command": {
            name: {kind: tally.kills[name, kind] for kind in KINDS}
            for name in dict.fromkeys(name for name, _ in tally.kills)
        },
        "ended_by_kind": {
            kind: sum(count for (_, other), count in tally.survived.items() if other == kind)
            for kind in KINDS
        },
        "details": details,
    }
    return _summed([found])


def with_others(record: dict[str, Any], output: Path) -> dict[str, Any]:
    """The campaigns of a record that is there, and this one, in place of those that it repeats.

    One that killed further commands stays: its counts are of all of them.
    """
    (new,) = record["campaigns"]
    there = json.loads((output / "faults.json").read_text(encoding="utf-8"))["campaigns"]
    kept = [each for each in there if not set(each["by_command"]) <= set(new["by_command"])]
    return _summed([*kept, new])


def _summed(campaigns: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: sum(each[name] for each in campaigns) for name in SUMS} | {"campaigns": campaigns}


def fault_table(campaigns: list[dict[str, Any]]) -> str:
    """By command: how often each kind struck; Markdown."""
    lines: list[tuple[str, ...]] = [("command", *KINDS, "all"), ("---",) * (len(KINDS) + 2)]
    total: Counter[str] = Counter()
    for campaign in campaigns:
        for name, kinds in campaign["by_command"].items():
            total.update(kinds)
            lines.append(
                (name, *(str(kinds.get(kind, 0)) for kind in KINDS), str(sum(kinds.values())))
            )
    lines.append(("all", *(str(total[kind]) for kind in KINDS), str(sum(total.values()))))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _drawn(campaign: dict[str, Any]) -> str:
    """What a campaign says of the pages: with real charts, and how often without them."""
    if "ended_by_kind" not in campaign:
        return ""
    without = campaign["ended_by_kind"].get("no charts", 0)
    return (
        ". Pages were drawn by the chart library itself. Runs in which it could not "
        f"draw: {without}; all ended all the same, and `report` drew the pages later"
    )


def write_record(record: dict[str, Any], output: Path) -> None:
    """faults.json and faults.md."""
    write_json(output / "faults.json", record)
    campaigns = "\n".join(
        f"- {each['date']}: `{each['line']}`: {', '.join(each['by_command'])}{_drawn(each)}"
        for each in record["campaigns"]
    )
    text = (
        "# Kills\n\n"
        "Runs killed at random times and at random writes, started again, and compared with an\n"
        f"undisturbed run:\n\n{campaigns}\n\n{fault_table(record['campaigns'])}\n\n"
        f"Results lost: {record['lost']}. Outputs half written: {record['half_written']}. Results "
        f"unlike the undisturbed run's: {record['wrong']}.\n\n"
        f"{record['ended_all_the_same']} further strikes came too late, or too mildly, to stop the "
        f"command. {record['resumed']} runs went on where killed ones had stopped. A traceback "
        f"stood where one line was due {record['tracebacks']} times.\n"
    )
    write_text(output / "faults.md", text)
