"""Kill long commands, run them again, and check that nothing is lost, half written or wrong.

python -m tests.campaigns.faults --kills 250 [--seed 0] [--commands capture,evaluate]
    [--output DIR [--add]]

The long-running commands run on a tiny random pair. Each is killed one to three times in a row
(SIGKILL, SIGTERM, SIGINT, a full disk, memory that ends, charts that cannot be drawn), at a random
time or at a random write to its output, and then started once more and left alone; pages that are
missing then are drawn by `report`. What it leaves is compared with what an undisturbed run left: to
the byte where nothing is timed, in all but the times elsewhere.

The last line is one JSON object: `kills`; `lost`, results that were on the disk and were computed
again, or runs that could not go on; `half_written`, outputs that stood there unfinished, and
leftovers beside finished ones; `wrong`, results unlike the undisturbed run's.
With --add the table in DIR keeps the campaigns that killed other commands too, and lists them all.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.campaigns import judging
from tests.campaigns.fault_record import (
    COUNTS,
    KINDS,
    Tally,
    as_record,
    fault_table,
    with_others,
    write_record,
)
from tests.campaigns.judged_sweep import sweep_command
from tests.campaigns.judging import Command
from tests.campaigns.warm import HIDDEN, ULIMIT_V, Ended, Fault, import_what_was_imported, run

SIGNALS = KINDS[:3]
MAX_KILLS_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """A run that nothing befell."""

    ended: Ended
    final: Any


def main() -> None:
    """Print the table, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default="capture,apply,evaluate,bench,sweep")
    parser.add_argument("--output", type=Path, help="Write faults.json and faults.md there.")
    parser.add_argument("--add", action="store_true", help="To the campaigns that are there.")
    options = parser.parse_args()
    names = options.commands.split(",")
    judging.import_everything(names)
    with tempfile.TemporaryDirectory(prefix="faults.") as directory:
        work_dir = Path(directory)
        judging.make_inputs(work_dir, needs_candidate=bool({"evaluate", "bench"} & set(names)))
        known = [*judging.commands(work_dir), sweep_command(work_dir)]
        commands = [command for command in known if command.name in names]
        tally = campaign(commands, work_dir, options.kills, random.Random(options.seed))
    record = as_record(tally, options.seed, names)
    if options.add:
        record = with_others(record, options.output)
    print(fault_table(record["campaigns"]))
    if options.output is not None:
        write_record(record, options.output)
    print(json.dumps({key: record[key] for key in COUNTS}))
    if record["lost"] or record["half_written"] or record["wrong"]:
        sys.exit(1)


def campaign(commands: list[Command], work_dir: Path, kills: int, rng: random.Random) -> Tally:
    """Kill the commands in turns until there were enough kills."""
    tally, undisturbed = Tally(), {}
    for command in commands:
        undisturbed[command.name] = _undisturbed(command, work_dir)
        ended = undisturbed[command.name].ended
        print(f"{command.name}: {ended.seconds:.1f} s, {ended.num_points} writes", flush=True)
    turn = 0
    while sum(tally.kills.values()) < kills:
        command = commands[turn % len(commands)]
        turn += 1
        left = kills - sum(tally.kills.values())
        in_a_row = min(rng.randint(1, MAX_KILLS_IN_A_ROW), left)
        before = tally.complaints
        _one_story(command, undisturbed[command.name], work_dir, in_a_row, rng, tally)
        for complaint in set(tally.complaints) - set(before):
            print(complaint, flush=True)
        if turn % 10 == 0:
            print(f"{sum(tally.kills.values())} kills", file=sys.stderr, flush=True)
    return tally


def _undisturbed(command: Command, work_dir: Path) -> Undisturbed:
    path, tally = _empty(work_dir) / command.result, Tally()
    ended = _run(command, work_dir, {}, [command.name], tally)
    if ended.status != 0 or tally.lost or tally.half_written:
        raise SystemExit(f"{command.name} fails undisturbed: {tally}\n{ended.log}")
    import_what_was_imported(work_dir)
    # Once more, for the time it takes with everything imported.
    _empty(work_dir)
    return Undisturbed(_run(command, work_dir, {}, [command.name], tally), command.final(path))


def _one_story(
    command: Command,
    undisturbed: Undisturbed,
    work_dir: Path,
    num_kills: int,
    rng: random.Random,
    tally: Tally,
) -> None:
    """Some kills in a row, then a run that is left alone, then the comparison."""
    path, told = _empty(work_dir) / command.result, [command.name]
    kept: dict[str, Any] = {}
    for _ in range(num_kills):
        fault = random_fault(undisturbed.ended, rng)
        ended = _run(command, work_dir, kept, told, tally, fault)
        where = (command.name, fault.kind)
        tally.kills[where] += ended.status != 0
        tally.survived[where] += ended.status == 0
        if "Traceback" in ended.log:
            tally.tracebacks.append(f"{told}: {ended.log[-3000:]}")
        if command.is_finished(path):
            break
        kept |= command.kept(path)
    if not command.is_finished(path):
        tally.num_resumed += 1
        ended = _run(command, work_dir, kept, told, tally)
        if ended.status != 0 or not command.is_finished(path):
            tally.lost.append(f"{told} does not go on: {ended.log[-3000:]}")
            return
    if any(not (path / page).is_file() for page in command.pages):
        ended = _run(drawing_anew(command), work_dir, kept, told, tally)
        still = [page for page in command.pages if not (path / page).is_file()]
        if ended.status != 0 or still:
            tally.lost.append(f"{told} has no {still}, and report fails: {ended.log[-3000:]}")
    if (found := command.final(path)) != undisturbed.final:
        tally.wrong.append(f"{told}: {judging.difference(undisturbed.final, found)}")
    if leftovers(path):  # it died after its last act: the next run, refused, clears them away
        _run(command, work_dir, kept, told, tally)
    tally.half_written += [f"{told}: left {name}" for name in leftovers(path)]


def _run(
    command: Command,
    work_dir: Path,
    kept: dict[str, Any],
    told: list[str],
    tally: Tally,
    fault: Fault | None = None,
) -> Ended:
    """One run of a story: what was kept before it must be there after it, and not anew."""
    path, computed = work_dir / "out" / command.result, work_dir / "computed"
    computed.unlink(missing_ok=True)
    ended = run(
        command.line.split(), work_dir, fault, lambda: judging.count_units(work_dir / "computed")
    )
    told.append(f"{fault or 'left alone'} -> {ended.status}")
    num_computed = sum(map(int, computed.read_text().split())) if computed.exists() else 0
    if num_computed > command.num_units - judging.units(kept):
        tally.lost.append(
            f"{told}: computed {num_computed} of {command.num_units}, {judging.units(kept)} kept"
        )
    if path.exists():
        tally.half_written += [f"{told}: {each}" for each in command.complaints(path)]
    now = command.kept(path) if command.name != "capture" or not path.exists() else kept
    tally.lost += [f"{told}: {name}" for name, value in kept.items() if now.get(name) != value]
    return ended


def drawing_anew(command: Command) -> Command:
    """Return the command that draws the pages of a finished output which lacks them."""
    output = next(word for word in command.line.split() if word.endswith(f"/out/{command.result}"))
    return replace(command, line=f"report {output}")


def random_fault(undisturbed: Ended, rng: random.Random) -> Fault:
    """Signals fall half at any time and half at any write; disk and memory end in two ways each."""
    kind = rng.choice(KINDS)
    at_point = rng.randint(1, max(1, undisturbed.num_points))
    if kind == "no charts":
        return Fault(kind, limit=rng.choice((HIDDEN, ULIMIT_V)))
    if kind in SIGNALS:
        if rng.random() < 0.5:
            return Fault(kind, after_s=rng.uniform(0, 1.05 * undisturbed.seconds))
        return Fault(kind, at_point=at_point)
    if rng.random() < 0.5:
        return Fault(kind, at_point=at_point)
    if kind == "full disk":  # sizes from a line to a checkpoint
        return Fault(kind, limit=int(10 ** rng.uniform(1, 6.5)))
    return Fault(kind, limit=int(rng.uniform(0, 150e6)))


def leftovers(path: Path) -> list[str]:
    """Hidden or unfinished files beside a finished output, or in it."""
    beside = [p.name for p in path.parent.iterdir() if p != path]
    inside = [str(p.relative_to(path)) for p in path.rglob(".*")] if path.is_dir() else []
    return beside + inside


def _empty(work_dir: Path) -> Path:
    out = work_dir / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return out


if __name__ == "__main__":
    main()
