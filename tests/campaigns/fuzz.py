"""Read hundreds of thousands of hostile files: each is read, or refused in one line.

    python -m tests.campaigns.fuzz [--inputs N] [--seed S] [--only FORMAT] [--output DIR]

Input number i of a format is made from (seed, format, i) alone, so a finding can be made again.
A crash is any exception that is no QuantDraftError, a message of several lines, or a read of more
than SECONDS_PER_INPUT. The last line is JSON: inputs, accepted, refused and crashes, in all and by
format.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from quantdraft.common.files import write_json, write_text
from quantdraft.errors import QuantDraftError
from tests.campaigns.findings import findings_lines

SECONDS_PER_INPUT = 10.0
MEMORY_BYTES = 8 << 30  # beyond what the process has already: an input that asks for more crashes


class TooSlowError(BaseException):
    """A read that does not end. Not an Exception: nothing may swallow it."""


@dataclass
class FuzzCounts:
    """What became of one format's inputs."""

    name: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    crashes: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)  # first words of refusals
    findings: dict[str, str] = field(default_factory=dict)  # where -> the first input and what


def fuzz(num_inputs: int, seed: int = 0, only: str | None = None) -> Iterator[FuzzCounts]:
    """Read about `num_inputs` hostile files, as many of each format but of slow ones."""
    from tests.campaigns.formats import formats

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(dir=_memory_disk()) as name, _bounded():
        known = [each for each in formats(Path(name)) if only in {None, each.name}]
        total = sum(each.share for each in known)
        for each in known:
            yield _fuzzed(each, math.ceil(num_inputs * each.share / total), seed)


def _fuzzed(each: Any, num_inputs: int, seed: int) -> FuzzCounts:
    counts, started = FuzzCounts(each.name), time.perf_counter()
    original = each.file.read_bytes() if each.file.is_file() else None
    for number in range(num_inputs):
        chance = random.Random(f"{seed}:{each.name}:{number}")
        content = each.mutate(chance.choice(each.seeds), each.seeds, chance)
        each.file.write_bytes(content)
        counts.inputs += 1
        _read(each, counts, number, content)
    if original is not None:
        each.file.write_bytes(original)
    counts.seconds = time.perf_counter() - started
    return counts


def _read(each: Any, counts: FuzzCounts, number: int, content: bytes) -> None:
    from tests.campaigns.hostile import is_one_line

    signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_INPUT)
    try:
        each.read()
        counts.accepted += 1
    except QuantDraftError as error:
        if is_one_line(error):
            counts.refused += 1
            counts.reasons[type(error).__name__] += 1
        else:
            _found(counts, number, content, error, "a message of several lines")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a library is no Exception
        _found(counts, number, content, error, type(error).__name__)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _found(
    counts: FuzzCounts, number: int, content: bytes, error: BaseException, kind: str
) -> None:
    counts.crashes += 1
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/quantdraft/" in frame.filename] or list(frames)
    last = own[-1] if own else None
    where = f"{Path(last.filename).name}:{last.lineno} {last.name}" if last else "nowhere"
    shown = f"input {number}: {str(error)[:200]!r} from {content[:300]!r}"
    counts.findings.setdefault(f"{kind} at {where}", shown)


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Endless reads and endless memory become exceptions."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TooSlowError(f"more than {SECONDS_PER_INPUT} s")

    before = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, hard))
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _memory_disk() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def summary(all_counts: list[FuzzCounts], seed: int) -> dict[str, Any]:
    """Totals, and the same by format."""
    keys = ("inputs", "accepted", "refused", "crashes")
    totals = {key: sum(getattr(counts, key) for counts in all_counts) for key in keys}
    by_format = {t.name: {key: getattr(t, key) for key in keys} for t in all_counts}
    return {**totals, "seed": seed, "by_format": by_format}


def main() -> int:
    """Run, print a line a format and every finding, then the summary; 1 where there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one format by its name")
    parser.add_argument("--output", type=Path, help="where fuzz.json and fuzz.md go")
    given = parser.parse_args()
    all_counts = []
    for counts in fuzz(given.inputs, given.seed, given.only):
        all_counts.append(counts)
        print(_line(counts), flush=True)
        for where, what in counts.findings.items():
            print(f"    {where}\n        {what}", flush=True)
    total = summary(all_counts, given.seed)
    if given.output is not None:
        _write(given.output, total, all_counts)
    print(json.dumps(total))
    return 1 if total["crashes"] else 0


def _line(counts: FuzzCounts) -> str:
    rate = counts.inputs / max(counts.seconds, 1e-9)
    return (
        f"{counts.name:<36} {counts.inputs:>6} inputs, {counts.accepted:>6} accepted, "
        f"{counts.refused:>6} refused, {counts.crashes:>4} crashes, {rate:,.0f} a second"
    )


def _write(output: Path, total: dict[str, Any], all_counts: list[FuzzCounts]) -> None:
    details = [{**vars(counts), "reasons": dict(counts.reasons)} for counts in all_counts]
    plain = {**total, "tallies": details}
    write_json(output / "fuzz.json", plain)
    rows = [
        f"| {t.name} | {t.inputs:,} | {t.accepted:,} | {t.refused:,} | {t.crashes} | "
        f"{t.inputs / max(t.seconds, 1e-9):,.0f} |"
        for t in all_counts
    ]
    head = "| format | inputs | accepted | refused in one line | crashes | a second |"
    text = "\n".join(
        [
            "# Hostile files",
            "",
            f"`python -m tests.campaigns.fuzz --inputs {total['inputs']} --seed {total['seed']}`: "
            f"{total['inputs']:,} inputs, {total['accepted']:,} accepted, {total['refused']:,} "
            f"refused in one line, {total['crashes']} crashes.",
            "",
            head,
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "A crash is any exception but a QuantDraftError, a message of several lines, or more "
            f"than {SECONDS_PER_INPUT:g} s. It says what reading did: single values changed inside "
            "valid records, and every view of them drawn, are another campaign, "
            "[records.md](records.md).",
            "",
            *findings_lines(),
        ]
    )
    write_text(output / "fuzz.md", text)


if __name__ == "__main__":
    sys.exit(main())
