"""What an engine does with the traffic: three arms and a control, each a server, beside replay.

The engine writes its own text. Replaying that text through the draft in transformers says what the
engine's counters must be; they are kept side by side, prompt by prompt.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from quantdraft.checkpoints.checkpoint import Checkpoint, stored_end_token_ids
from quantdraft.checkpoints.configs import num_positions
from quantdraft.checkpoints.tensors.free_memory import available_bytes
from quantdraft.common.progress import bar, say
from quantdraft.engines.findings import stored_draft
from quantdraft.engines.kernels.dense import type_name
from quantdraft.engines.measured import Installation, Request, ServerPlan
from quantdraft.engines.registry import engine_named
from quantdraft.engines.serving_settings import ServingSettings
from quantdraft.errors import OptionError
from quantdraft.measure.served.cross_check import cross_check, replay_dtype
from quantdraft.measure.served.fleet import (
    ARMS,
    ArmAnswers,
    Fleet,
    ask_in_turns,
    num_visits,
    warm_up,
)
from quantdraft.measure.served.served_run import Serve
from quantdraft.record import Served
from quantdraft.record.provenance import load_around, load_average
from quantdraft.record.terms import nearest_to_usual

# Of a server of ours, where the user does not say: the fewest in which a difference shows.
NUM_LOADS = 2
# Of what is free, how much servers may take: all together, and one that runs alone.
MOST_OF_FREE, MOST_OF_FREE_ALONE = 0.9, 0.95
ONE_LOAD = (
    "each arm has one server, started once: what differs from one start to the next is in no "
    "interval."
)


def served_k(serving: ServingSettings, ks: Sequence[int]) -> int:
    """Return the one k that is served: the user's, or the usual one of those replayed."""
    return serving.k or nearest_to_usual(ks)


def serve(run: Serve) -> Served:
    """Serve the traffic's prompts in all arms, and replay the texts that come of it.

    Raises OptionError for what the engine would refuse or misread, EngineError when a server dies
    while it is asked. A server that does not come up makes its arm undefined, with its own reason.
    """
    subject, title = run.subject, run.measured.title
    refusal = run.measured.refusal(subject.rule, subject.sampling)
    if refusal is not None:
        raise OptionError(refusal)
    if len(run.settings.ks) > 1 and run.settings.serving.k is None:
        k = run.num_speculative_tokens
        say(f"{title} serves one k: {k}, of -k the nearest to 4. Another: --engine-k N.")
    requests = [_request(run, index) for index in range(len(subject.traffic.responses))]
    before = load_average()
    served, answers = (
        _ask_running(run, requests) if run.settings.serving.urls else _ask_own(run, requests)
    )
    load = load_around(before, load_average())
    arms = cross_check(run, served, answers.by_arm)
    return replace(served, arms=arms, undefined=answers.undefined, load_average=load)


def _ask_own(run: Serve, requests: Sequence[Request]) -> tuple[Served, ArmAnswers]:
    """Ask servers of ours, in the first float type that the candidate runs in."""
    for checkpoint in (run.subject.models.baseline, run.subject.models.candidate):
        _require_servable(run, checkpoint)
    found = run.measured.open(run.settings.serving)
    answers = ArmAnswers({}, {})
    num_loads = run.settings.serving.num_loads or NUM_LOADS
    for dtype in found.float_types(run.settings.models.dtype, run.target):
        is_interleaved, share = memory_for(run, found, dtype)
        plan = _server_plan(run, found, dtype, share)
        fleet = Fleet(run.measured, found, plan, _drafts(run, found, dtype), run.subject.run_dir)
        how = "all at once" if is_interleaved else "one after another"
        times = f"started {num_loads} times" if num_loads > 1 else "started once"
        say(f"{run.measured.title} {found.version}: {len(ARMS)} servers, {how}, {times}, {dtype}")
        total = len(requests) * len(ARMS) * num_visits(num_loads)
        with bar(total, f"{run.measured.title} {dtype}", "request") as progress:
            ask = fleet.ask_together if is_interleaved else fleet.ask_one_by_one
            answers = ask(requests, num_loads, progress)
        if "candidate" not in answers.undefined:
            break
        say(f"{dtype}: {answers.undefined['candidate']}")
    if num_loads == 1:
        say(ONE_LOAD)
    served = _without_arms(run, found.version, found.device_type, dtype, is_interleaved)
    speculative = dict(found.speculative)
    return replace(served, speculative=speculative, is_synthetic=found.is_synthetic), answers


def _ask_running(run: Serve, requests: Sequence[Request]) -> tuple[Served, ArmAnswers]:
    """Ask servers that the user runs: `ARM=URL`, or a bare URL for the candidate's."""
    urls = parse_urls(run.settings.serving.urls)
    clients = {arm: run.measured.client(url) for arm, url in urls.items()}
    for client in clients.values():
        warm_up(client, requests)
    say(ONE_LOAD)
    total = len(requests) * len(clients) * num_visits(1)
    with bar(total, run.measured.title, "request") as progress:
        answers = ask_in_turns(clients, requests, progress)
    undefined = {arm: "no server was given for it" for arm in ARMS if arm not in clients}
    version = next(iter(clients.values())).version()
    served = _without_arms(run, version, "the servers' own", "unknown", True)
    return served, ArmAnswers(answers, undefined)


def parse_urls(given: Sequence[str]) -> dict[str, str]:
    """Return URLs by arm, from `baseline=http://…` or a bare URL of the candidate's server."""
    found: dict[str, str] = {}
    for text in given:
        arm, equals, url = text.partition("=")
        if not equals or arm not in ARMS:
            arm, url = "candidate", text
        if arm in found:
            raise OptionError(
                f"--engine-url {text!r}: a second server for {arm}. Write ARM=URL with one of "
                f"{', '.join(ARMS)}."
            )
        found[arm] = url
    return found


def _without_arms(
    run: Serve, version: str, device: str, dtype: str, is_interleaved: bool
) -> Served:
    return Served(
        engine=run.settings.serving.engine,
        version=version,
        device=device,
        dtype=dtype,
        num_speculative_tokens=run.num_speculative_tokens,
        speculative={},
        is_interleaved=is_interleaved,
        arms={},
        is_expectation=run.subject.rule == "rejection" and not run.subject.sampling.is_greedy,
        replay_dtype=type_name(replay_dtype(run.subject.dtype, dtype)),
    )


def _server_plan(run: Serve, found: Installation, dtype: str, share: float | None) -> ServerPlan:
    return ServerPlan(
        target=found.model_file(run.target, dtype),
        dtype=dtype,
        num_speculative_tokens=run.num_speculative_tokens,
        max_model_len=_max_model_len(run),
        rule=run.subject.rule,
        seed=run.settings.seed,
        memory_share=share,
    )


def _drafts(run: Serve, found: Installation, dtype: str) -> dict[str, Path | None]:
    """Return what the engine loads as the draft of each arm."""
    drafts = {arm: run.checkpoint(arm) for arm in ARMS}
    return {
        arm: None if draft is None else found.model_file(draft, dtype)
        for arm, draft in drafts.items()
    }


def _max_model_len(run: Serve) -> int:
    """Return the longest prompt and response, with a round to spare where the target has it."""
    longest = max(
        len(r.prompt_token_ids) + len(r.response_token_ids) for r in run.subject.traffic.responses
    )
    wanted = -(-(longest + run.num_speculative_tokens + 1) // 64) * 64
    limit = num_positions(run.target.text_config)
    return min(wanted, limit) if limit else wanted


def _request(run: Serve, index: int) -> Request:
    """Return the request for a prompt: as many tokens as its response has, ended as that was."""
    response = run.subject.traffic.responses[index]
    ends = stored_end_token_ids(run.target)
    has_ended = response.response_token_ids[-1] in ends
    return Request(
        prompt_token_ids=response.prompt_token_ids,
        max_tokens=len(response.response_token_ids),
        sampling=run.subject.sampling,
        seed=run.settings.seed + index,
        stop_token_ids=ends if has_ended else (),
    )


def _require_servable(run: Serve, draft: Checkpoint) -> None:
    """Raise OptionError for a draft that the engine refuses."""
    engine = engine_named(run.settings.serving.engine)
    found = engine.check(stored_draft(draft, run.target.config))
    refused = [finding.message for finding in found if finding.severity == "refuse"]
    if refused:
        raise OptionError(f"{run.measured.title} cannot serve '{draft.path}': {refused[0]}")


class Memory(NamedTuple):
    """What a device's memory allows the servers of the arms."""

    holds_all: bool  # at once
    share: float | None  # of a GPU's whole memory, for each server; None: the engine's own default


def memory_for(run: Serve, found: Installation, dtype: str) -> Memory:
    """Return whether the servers fit beside each other, and how much each may take.

    Memory that this process holds without need is given back first: an engine wants its share free.
    """
    device = run.subject.device
    item_bytes = 4 if dtype == "float32" else 2
    models = [run.target, run.subject.models.baseline]
    elements = sum(info.num_bytes for c in models for info in c.tensors.values()) / 2
    needed = len(ARMS) * (elements * item_bytes * 1.2 + found.server_bytes)
    if found.device_type == "cpu":
        free = available_bytes(torch.device("cpu"))
        return Memory(free is not None and needed <= MOST_OF_FREE * free, None)
    if found.device_type != "cuda" or device.type != "cuda":
        return Memory(False, None)
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    if needed <= MOST_OF_FREE * free:
        return Memory(True, MOST_OF_FREE * free / total / len(ARMS))
    return Memory(False, MOST_OF_FREE_ALONE * free / total)
