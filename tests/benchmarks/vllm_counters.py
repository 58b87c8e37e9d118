"""Compare vLLM's counters with replay, draft by draft and prompt by prompt.

python -m tests.benchmarks.vllm_counters [--vllm-python P] [--num-prompts 4] [--num-tokens 96]
    [--target T --traffic F --drafts DIRECTORY,…]

Without a target it is the embedded pair, and recipes of its draft.

Greedy, k = 4. Every draft is served in float32 where vLLM loads it so, else in bfloat16. The rounds
are counted on the text that vLLM emitted; replay is one teacher-forced pass of the same checkpoint
in transformers, float32. Weight-only drafts in float32 must agree to the round. Where the engine
rounds activations (W8A8, FP8) or computes in 16 bits, its kernels and transformers' differ at
near-ties of the draft, and rounds may differ by a few. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.checkpoints.tensors.unpacking import rounds_activations
from quantdraft.engines.counters import Counters
from quantdraft.engines.measured import Completion, Request, ServerPlan, ask
from quantdraft.engines.vllm.client import VllmClient
from quantdraft.engines.vllm.environment import Environment, find_vllm
from quantdraft.engines.vllm.measured import MeasuredVllm, VllmInstallation
from quantdraft.measure.capture import capture
from quantdraft.measure.served.cross_check import rounds_replayed
from quantdraft.measure.served.fleet import Fleet, blamed_on
from quantdraft.measure.settings import CaptureSettings
from quantdraft.quantize.apply import apply
from quantdraft.quantize.recipe import load_recipe
from quantdraft.traffic.traffic import Response, Sampling, Traffic, read_traffic

K = 4
DRAFTS = ("bf16", "int4", "int4-gptq", "int8", "fp8")
COLUMNS = "{:<10} {:<9} {:<40} {:>7} {:>7} {:>7}  {:<10} {}"


@dataclass(frozen=True)
class Counted:
    """One draft: what vLLM counted and replay predicts, one number a prompt; or why nothing."""

    dtype: str
    engine: tuple[int, ...]
    replay: tuple[float, ...]
    same_text: tuple[bool, ...]
    seconds: float
    rounds_activations: bool
    undefined: str | None = None

    @property
    def is_exact(self) -> bool:
        return self.dtype == "float32" and not self.rounds_activations


def applied(name: str, calibration: Path, directory: Path) -> Path:
    """The draft of one name: the embedded one itself, or a recipe of it."""
    draft = pair_dir() / "draft"
    if name == "bf16":
        return draft
    recipe = load_recipe(name)
    given = calibration if recipe.needs_calibration else None
    apply(recipe, str(draft), directory / name, calibration=given)
    return directory / name


def counted(
    environment: Environment,
    path: Path,
    traffic: Traffic,
    log_dir: Path,
    dtypes: list[str],
    target: Path | None = None,
) -> Counted:
    """Serve one draft in the first float type that loads, ask every prompt, replay the answers."""
    started, reasons = time.perf_counter(), []
    requests = [
        Request(r.prompt_token_ids, len(r.response_token_ids), Sampling(), 0, ())
        for r in traffic.responses
    ]
    has_rounding = rounds_activations(open_checkpoint(path))
    for dtype in dtypes:
        plan = ServerPlan(target or pair_dir() / "target", dtype, K, longest(traffic))
        ours = MeasuredVllm(), VllmInstallation(environment)
        fleet = Fleet(*ours, plan, {path.name: path}, log_dir / dtype)
        with fleet.start(path.name) as server:
            reason = fleet.failure(path.name, server, requests)
            if reason is not None:
                said, _, _ = reason.partition(" (log: ")  # which goes with the temporary directory
                reasons.append(f"{dtype}: {said}")
                continue
            with blamed_on({path.name: server}):
                client = VllmClient(server.url)
                answers = [ask(client, request) for request in requests]
        replay, same = replayed(path, traffic, answers)
        engine = tuple(c.num_drafts for _, c in answers)
        seconds = time.perf_counter() - started
        return Counted(dtype, engine, replay, same, seconds, has_rounding)
    seconds = time.perf_counter() - started
    return Counted("none", (), (), (), seconds, has_rounding, "; ".join(reasons))


def longest(traffic: Traffic) -> int:
    """The length that the server is started with, in tokens: a round may go past the last one."""
    lengths = (len(r.prompt_token_ids) + len(r.response_token_ids) for r in traffic.responses)
    return max(512, max(lengths) + 2 * K)


def first_of_each_domain(traffic: Traffic, num_prompts: int, num_tokens: int) -> Traffic:
    """Some responses, in turns of their domains, cut to a length."""
    by_domain: dict[str, list[Response]] = {}
    for response in traffic.responses:
        by_domain.setdefault(response.domain, []).append(response)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_domain.values()))
    chosen = itertools.islice((each for each in turns if each is not None), num_prompts)
    cut = (
        replace(each, response_token_ids=each.response_token_ids[:num_tokens], logprobs=None)
        for each in chosen
    )
    return replace(traffic, responses=tuple(cut))


def replayed(
    path: Path, traffic: Traffic, answers: list[tuple[Completion, Counters]]
) -> tuple[tuple[float, ...], tuple[bool, ...]]:
    """Rounds of the engine's own texts, and which of them are the traffic's."""
    texts = [
        replace(response, response_token_ids=completion.token_ids, logprobs=None)
        for response, (completion, _) in zip(traffic.responses, answers, strict=True)
    ]
    draft = load_model(path, torch.float32, torch.device("cpu"))
    rounds = rounds_replayed(draft, texts, "greedy", Sampling(), K)
    same = (
        a.response_token_ids == b.response_token_ids
        for a, b in zip(texts, traffic.responses, strict=True)
    )
    return tuple(rounds), tuple(same)


def show(name: str, found: Counted, traffic: Traffic) -> None:
    """One line a prompt, and one for all."""
    if found.undefined:
        print(f"{name:<10} undefined: {found.undefined}", flush=True)
        return
    why = "exact" if found.is_exact else f"near-ties: {kernels(found)}"
    rows = zip(traffic.responses, found.engine, found.replay, found.same_text, strict=True)
    for response, engine, replay, same in rows:
        difference = round(engine - replay)
        text = "identical" if same else "other"
        where = response.prompt_id[-40:]
        line = COLUMNS.format(
            name, found.dtype, where, engine, f"{replay:.0f}", difference, text, why
        )
        print(line)
    total = sum(found.engine), sum(found.replay)
    where = f"all ({found.seconds:.0f} s)"
    difference = round(total[0] - total[1])
    print(
        COLUMNS.format(name, found.dtype, where, total[0], f"{total[1]:.0f}", difference, "", why),
        flush=True,
    )


def kernels(found: Counted) -> str:
    """Why the engine's arithmetic is not transformers'."""
    reasons = ["activations are rounded in the engine's own kernels"] * found.rounds_activations
    reasons += ["16 bits"] * (found.dtype != "float32")
    return ", ".join(reasons)


def main() -> None:
    """Run it on the embedded pair and print one JSON line at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm-python", type=Path, help="Default: the installed environment.")
    parser.add_argument("--target", type=Path, help="Default: that of the embedded pair.")
    parser.add_argument("--traffic", type=Path, help="With --target: its responses.")
    parser.add_argument("--num-prompts", type=int, default=4)
    parser.add_argument("--num-tokens", type=int, default=96)
    parser.add_argument("--drafts", default=",".join(DRAFTS))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    options = parser.parse_args()
    if (options.target is None) != (options.traffic is None):
        parser.error("--target and --traffic go together.")
    started = time.perf_counter()
    environment = find_vllm(options.vllm_python)
    print(f"vLLM {environment.version} on {environment.device_type}, greedy, k = {K}")
    found: dict[str, Counted] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        size = options.num_prompts, options.num_tokens
        if options.target is None:
            traffic = captured("prompts", directory, *size)
            captured("calibration", directory, 32, options.num_tokens)
        else:
            traffic = first_of_each_domain(read_traffic(options.traffic), *size)
        print(COLUMNS.format("draft", "dtype", "prompt", "engine", "replay", "diff", "text", ""))
        for draft in options.drafts.split(","):
            given = None if options.target is None else Path(draft)
            path = given or applied(draft, directory / "calibration.jsonl", directory)
            dtypes, logs = options.dtypes.split(","), directory / "logs" / path.name
            served = counted(environment, path, traffic, logs, dtypes, options.target)
            found[path.name if given else draft] = served
            show(path.name if given else draft, served, traffic)
    print(json.dumps(summary(environment, found, time.perf_counter() - started)))


def captured(name: str, directory: Path, num_prompts: int, num_tokens: int) -> Traffic:
    """The target's own greedy responses to an embedded set of prompts."""
    return capture(
        CaptureSettings(
            str(pair_dir() / "target"),
            pair_dir() / f"{name}.jsonl",
            directory / f"{name}.jsonl",
            sampling=Sampling(),
            max_new_tokens=num_tokens,
            limit=num_prompts,
        )
    )


def summary(
    environment: Environment, found: dict[str, Counted], seconds: float
) -> dict[str, object]:
    """The figures of all drafts; those that could not be served have a reason and no number."""
    served = {name: each for name, each in found.items() if each.undefined is None}
    exact = [each for each in served.values() if each.is_exact]
    equal = [list(each.engine) == [round(n) for n in each.replay] for each in exact]
    return {
        "version": environment.version,
        "device": environment.device_type,
        "dtype": {name: each.dtype for name, each in served.items()},
        "is_exact": {name: each.is_exact for name, each in served.items()},
        "rounds_replay": {
            name: [round(n, 3) for n in each.replay] for name, each in served.items()
        },
        "rounds_engine": {name: list(each.engine) for name, each in served.items()},
        "equal_where_exact": all(equal) if equal else None,
        "undefined": {name: each.undefined for name, each in found.items() if each.undefined},
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
