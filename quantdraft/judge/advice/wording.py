"""How a diagnosis writes an interval and a command."""

from __future__ import annotations

import shlex

from quantdraft.record import Evaluation, Interval


def percent_of(ends: Interval) -> str:
    """`61.2 % (95 % interval 58.0 to 64.1 %)`."""
    return (
        f"{100 * ends.value:.1f} % (95 % interval {100 * ends.low:.1f} to {100 * ends.high:.1f} %)"
    )


def points_of(ends: Interval) -> str:
    """A difference of fractions: `+4.1 points (95 % interval +2.0 to +6.2)`."""
    return (
        f"{_signed(ends.value)} points (95 % interval {_signed(ends.low)} to {_signed(ends.high)})"
    )


def times_of(ends: Interval) -> str:
    """A ratio: `0.93 × (95 % interval 0.90 to 0.96)`."""
    return f"{ends.value:.2f} × (95 % interval {ends.low:.2f} to {ends.high:.2f})"


def model(evaluation: Evaluation, role: str) -> str:
    """What the user called a model, ready for a command line; a letter where it is not recorded."""
    identity = evaluation.provenance.get(role)
    name = identity.get("name") if isinstance(identity, dict) else None
    return shlex.quote(str(name)) if name else {"target": "T", "baseline": "D"}.get(role, "C")


def traffic(evaluation: Evaluation) -> str:
    """The traffic's path, ready for a command line."""
    found = evaluation.provenance.get("traffic")
    path = found.get("path") if isinstance(found, dict) else None
    return shlex.quote(str(path)) if path else "traffic.jsonl"


def evaluate_command(evaluation: Evaluation, *options: str) -> str:
    """`quantdraft evaluate` on the same models and traffic, with other options."""
    words = ["quantdraft evaluate", model(evaluation, "candidate")]
    words += ["--target", model(evaluation, "target"), "--baseline", model(evaluation, "baseline")]
    return " ".join([*words, "--traffic", traffic(evaluation), *options])


def milder_recipe(evaluation: Evaluation) -> tuple[str, str]:
    """What to do where the baseline is well: an action and its command."""
    command = f"quantdraft apply --recipe int8 --draft {model(evaluation, 'baseline')}"
    return "the baseline does not show it, so it is the recipe: try a milder one", command


def _signed(fraction: float) -> str:
    points = round(100 * fraction, 1) + 0.0  # + 0.0: no negative zero
    return f"{'−' if points < 0 else '+'}{abs(points):.1f}"
