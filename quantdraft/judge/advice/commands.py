"""The commands that a diagnosis names as the next step."""

from __future__ import annotations

import shlex

from quantdraft.record import Evaluation


def model(evaluation: Evaluation, role: str) -> str:
    """Return what the user called a model, for a command line; a letter where not recorded."""
    identity = evaluation.provenance.get(role)
    name = identity.get("name") if isinstance(identity, dict) else None
    if name is None and role == "target":  # a capture says which target wrote it
        known = evaluation.provenance.get("traffic")
        made_by = known.get("target") if isinstance(known, dict) else None
        name = made_by.get("name") if isinstance(made_by, dict) else None
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
    return " ".join([*words, "--traffic", traffic(evaluation), *_trace(evaluation), *options])


def _trace(evaluation: Evaluation) -> list[str]:
    """Return the options of the trace that the verdict was given over."""
    found = evaluation.trace
    if found is None:
        return []
    options = ["--trace", shlex.quote(found.path)]
    if found.num_servers > 1:
        options.append(f"--trace-servers {found.num_servers}")
    if found.is_pace_given:
        options.append(f"--trace-ms-per-token {next(iter(found.ms_per_token.values())):g}")
    return options


def next_command(evaluation: Evaluation, run_dir: str) -> str:
    """Return the command that the verdict leads to: export, the diagnosis' own, or more data.

    run_dir: where the record lies, ready for a command line
    """
    verdict = evaluation.verdict
    if verdict.is_control:
        return f"quantdraft apply --recipe int4 --draft {model(evaluation, 'baseline')}"
    if verdict.decision == "go":
        return _export_command(evaluation, run_dir)
    if verdict.decision == "inconclusive" and not (evaluation.latency.arms or evaluation.served):
        return evaluate_command(evaluation, f"-o {run_dir}-timed")
    diagnoses = evaluation.analysis.diagnoses if evaluation.analysis else ()
    found = [line.command for line in diagnoses if line.state == "found" and line.command]
    return found[0] if found else _without_diagnosis(evaluation, run_dir)


def _without_diagnosis(evaluation: Evaluation, run_dir: str) -> str:
    """Return the next command where no diagnosis has one: a milder recipe, or more data."""
    verdict = evaluation.verdict
    if verdict.decision == "no-go":
        return milder_recipe(evaluation)[1]
    if "prompts" in (verdict.to_settle or ""):
        target = model(evaluation, "target")
        return f"quantdraft capture --target {target} --prompts MORE.jsonl -o more-traffic.jsonl"
    return evaluate_command(evaluation, "--latency-seconds 60", f"-o {run_dir}-again")


def _export_command(evaluation: Evaluation, run_dir: str) -> str:
    candidate, served = model(evaluation, "candidate"), evaluation.served
    return (
        f"quantdraft export {candidate} --engine {served.engine if served else 'vllm'} "
        f"--target {model(evaluation, 'target')} --run {run_dir} -o {candidate}-served"
    )


def check_command(evaluation: Evaluation) -> str:
    """Return `quantdraft check` of the pair."""
    target, draft = model(evaluation, "target"), model(evaluation, "baseline")
    return f"quantdraft check --target {target} --draft {draft}"


def milder_recipe(evaluation: Evaluation) -> tuple[str, str]:
    """Return the action and the command for a loss that the baseline does not show."""
    command = f"quantdraft apply --recipe int8 --draft {model(evaluation, 'baseline')}"
    return "the baseline does not show it, so it is the recipe: try a milder one", command
