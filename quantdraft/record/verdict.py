"""The verdict: what was concluded, and from which checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quantdraft.record.terms import Finite, Interval, K

CheckResult = Literal["pass", "fail", "unsure", "undefined"]
Decision = Literal["go", "no-go", "inconclusive"]

# The speedup over the baseline draft that a go needs unless a policy says otherwise: a new artifact
# must earn its keep. It stands here because the byte ledger, which knows no policy, shows it too.
MIN_SPEEDUP = 1.02

# The names of the checks that other modules look for.
OVER_BASELINE = "speedup over the baseline draft"
OVER_AUTOREGRESSIVE = "speedup over autoregressive"
RATE_LOSS = "acceptance rate loss"
RATE = "acceptance rate"
IS_OTHER = "another than the baseline"


@dataclass(frozen=True, slots=True)
class Alarm:
    """A reason to stop a verdict. `code` is stable, `message` says what to do."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the verdict: what was observed against its limit."""

    name: str
    kind: Literal["decides", "advises"]
    result: CheckResult
    observed: Interval | None
    limit: Finite | None
    comparison: Literal[">=", ">", "<="] | None
    reason: str
    num_speculative_tokens: K | None = None  # the k of an acceptance; None where it has none


@dataclass(frozen=True, slots=True)
class Verdict:
    """go, no-go or inconclusive, with every check that led there and what would settle doubt."""

    decision: Decision
    summary: str
    checks: tuple[Check, ...]
    alarms: tuple[Alarm, ...]
    advice: tuple[str, ...]  # the diagnoses that explain it, each as a sentence
    to_settle: str | None  # e.g. "about 130 prompts (now 32)"; None unless inconclusive
    rests_on: tuple[str, ...] = ()  # codes of the same diagnoses; () for a go

    @property
    def is_control(self) -> bool:
        """True where the candidate is the baseline's copy: it shows the noise, and is no recipe."""
        return any(check.name == IS_OTHER and check.result == "fail" for check in self.checks)
