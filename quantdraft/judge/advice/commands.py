"""The commands that a diagnosis names as the next step."""

from __future__ import annotations

import shlex

from quantdraft.record import Evaluation


def model(evaluation: Evaluation, role: str) -> str:
    """Return what the user called a model, for a command line; a letter where not recorded."""
    identity = evaluation.provenance.get(role)
    name = identity.get("name") if isinstance(identity, dict) else None
    return shlex.quote(str(name)) if name else {"target": "T", "baseline": "D"}.get(role, "C")


def traffic(evaluation: Evaluation) -> str:
    """Return the traffic's path, ready for a command line."""
    found = evaluation.provenance.get("traffic")
    path = found.get("path") if isinstance(found, dict) else None
    return shlex.quote(str(path)) if path else "traffic.jsonl"


def evaluate_command(evaluation: Evaluation, *options: str) -> str:
    """Return `quantdraft evaluate` on the same models and traffic, with other options."""
    words = ["quantdraft evaluate", model(evaluation, "candidate")]
    words += ["--target", model(evaluation, "target"), "--baseline", model(evaluation, "baseline")]
    return " ".join([*words, "--traffic", traffic(evaluation), *options])


def check_command(evaluation: Evaluation) -> str:
    """Return `quantdraft check` of the pair."""
    target, draft = model(evaluation, "target"), model(evaluation, "baseline")
    return f"quantdraft check --target {target} --draft {draft}"


def milder_recipe(evaluation: Evaluation) -> tuple[str, str]:
    """Return the action and the command for a loss that the baseline does not show."""
    command = f"quantdraft apply --recipe int8 --draft {model(evaluation, 'baseline')}"
    return "the baseline does not show it, so it is the recipe: try a milder one", command
