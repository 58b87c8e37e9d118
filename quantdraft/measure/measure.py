"""The measurements of a run without step times, each kept when it is done: a killed run resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from quantdraft.common.progress import bar
from quantdraft.common.resume import stage
from quantdraft.judge.acceptance import Floats
from quantdraft.measure.kept_replays import open_replay
from quantdraft.measure.replay import acceptance_probabilities
from quantdraft.measure.served.serve import serve, served_k
from quantdraft.measure.served.served_run import Serve
from quantdraft.measure.settings import EvaluateSettings
from quantdraft.measure.subject import Subject
from quantdraft.quantize.proof.proof import probe_logits
from quantdraft.record import Served
from quantdraft.traffic.traffic import token_counts


def replay_arm(subject: Subject, arm: str, shared: Path | None = None) -> list[Floats]:
    """Return the acceptance probability of every response token under one draft, prompt by prompt.

    A killed replay goes on after its last whole batch; the numbers stay on the disk.

    arm: "baseline" or "candidate"
    shared: the directory of replays that are kept for other runs; None: it is kept with the run
    """
    responses = subject.traffic.responses
    num_tokens = token_counts(responses).response.tolist()
    with open_replay(subject, arm, shared, num_tokens) as store:
        if store.is_whole:
            return store.arrays()
        draft = subject.load(subject.draft(arm))
        with bar(len(responses), f"replay {arm}", "prompt") as progress:
            return acceptance_probabilities(draft, subject.traffic, subject.rule, progress, store)


def has_identical_logits(subject: Subject) -> bool:
    """Return whether the candidate's logits on a probe are the baseline's to the last bit."""

    def compute() -> bool:
        models = subject.models
        baseline, candidate = (
            probe_logits(draft, subject.device) for draft in (models.baseline, models.candidate)
        )
        return torch.equal(baseline, candidate)

    inputs = subject.draft_facts("baseline", "candidate")
    return stage(subject.run_dir, "probe", inputs, bool, compute)


def measure_served(subject: Subject, settings: EvaluateSettings) -> Served | None:
    """Return what the engine's servers did with the traffic; None where none was asked for."""
    serving = settings.serving
    if serving.is_native:
        return None
    responses = subject.traffic.responses[: serving.num_prompts]
    some = replace(subject.traffic, responses=responses)
    k = served_k(serving, settings.ks)
    inputs = {
        **subject.draft_facts("baseline", "candidate"),
        **subject.target_facts(),
        **subject.traffic_facts(),
        "k": k,
        "prompts": [response.prompt_id for response in responses],
        "seed": settings.seed,
        "engine": [serving.engine, str(serving.path), *serving.urls],
        "given": [*serving.spec, *serving.args],
        "num_loads": serving.num_loads,
    }
    run = Serve(replace(subject, traffic=some), settings, k)
    return stage(subject.run_dir, "served", inputs, Served, lambda: serve(run))
