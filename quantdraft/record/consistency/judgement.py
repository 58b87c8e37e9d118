"""A verdict beside its checks, and an analysis beside what it explains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantdraft.record.acceptance import Disagreement
from quantdraft.record.analysis import FATES, Analysis
from quantdraft.record.consistency.rules import Problem, check_length, check_within
from quantdraft.record.terms import ARMS
from quantdraft.record.verdict import RATE, RATE_LOSS, Check, Verdict


def check_limit(check: Check) -> Iterator[Problem]:
    """Yield a limit that its check cannot have."""
    if (check.limit is None) != (check.comparison is None):
        yield "comparison", "a limit and how it is compared go together"
    is_share = check.name in (RATE, RATE_LOSS)
    if check.limit is not None and not 0 <= check.limit <= (1 if is_share else 1e6):
        yield "limit", f"{check.limit:g} is no {'share' if is_share else 'ratio'}"
    if check.observed is not None and is_share:
        yield from check_within("observed", check.observed, -1, 1)


def check_verdict(verdict: Verdict) -> Iterator[Problem]:
    """Yield a decision that the checks and alarms do not give."""
    deciding = [check.result for check in verdict.checks if check.kind == "decides"]
    if verdict.decision == "go" and (verdict.alarms or set(deciding) - {"pass"}):
        yield "decision", "a go has no alarm and passes every check that decides"
    if verdict.decision == "no-go" and not verdict.alarms and set(deciding) <= {"pass"}:
        yield "decision", "a no-go has an alarm, or a check that decides and has not passed"


def check_analysis(analysis: Analysis) -> Iterator[Problem]:
    """Yield shares outside 0 to 1, and marks that are unknown."""
    for name in ("baseline_alpha", "candidate_alpha"):
        if (alpha := getattr(analysis, name)) is not None:
            yield from check_within(name, alpha, 0, 1)
    for place, fates in enumerate(analysis.fates):
        for arm in ARMS:
            marks = getattr(fates, arm)
            if set(marks) - set(FATES):
                yield f"fates.{place}.{arm}", f"marks are {' '.join(FATES)}"


def check_fates(analysis: Analysis, read: Sequence[Disagreement]) -> Iterator[Problem]:
    """Yield fates that are not one for each token of a disagreement."""
    yield from check_length("analysis.fates", analysis.fates, len(read), "of the disagreements")
    for place, (fates, each) in enumerate(zip(analysis.fates, read, strict=False)):
        for arm in ARMS:
            name = f"analysis.fates.{place}.{arm}"
            yield from check_length(name, getattr(fates, arm), len(each.tokens), "of the tokens")
