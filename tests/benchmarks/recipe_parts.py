"""Measure one part of one recipe's row in a process of its own (see `recipes_table`).

python -m tests.benchmarks.recipe_parts traffic|made|tried|served --recipe R --work DIR --output F

`made` comes first: the largest resident set of its process is `apply`'s.
"""

from __future__ import annotations

import argparse
import re
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.reference import pair_dir
from quantdraft.common.files import write_json
from quantdraft.quantize.recipe import load_recipe
from tests.benchmarks import recipe_gguf
from tests.benchmarks.recipe_rows import CONTEXT, GGUF, Counted, K, Made, Served, Tried

DRAFT, TARGET = pair_dir() / "draft", pair_dir() / "target"
TRAFFIC, CALIBRATION, SERVED = "traffic.jsonl", "calibration.jsonl", "served.jsonl"
DTYPES = ("float32", "bfloat16")
# In a refusal: it may be of the float type and not of the format, and another type may load.
FLOAT_TYPE = re.compile(r"float(16|32)|\bdtype\b|\bhalf\b|\bbf16\b|Float\b", re.IGNORECASE)
NUM_GENERATED = 16  # tokens of assisted generation, to see that an engine really runs


def checkpoint_dir(work: Path, recipe: str) -> Path:
    """Where a recipe's checkpoint lies."""
    return work / "checkpoints" / recipe


def traffic(options: argparse.Namespace) -> dict[str, int]:
    """The target's own greedy responses: to replay, to calibrate on, and those that are served."""
    from quantdraft.measure.capture import capture
    from quantdraft.measure.settings import CaptureSettings
    from quantdraft.traffic.traffic import Sampling

    sets = {
        TRAFFIC: ("prompts", None, options.num_tokens),
        CALIBRATION: ("calibration", None, options.num_tokens),
        SERVED: ("prompts", options.served_prompts, options.served_tokens),
    }
    counts = {}
    for name, (prompts, limit, num_tokens) in sets.items():
        found = capture(
            CaptureSettings(
                str(TARGET),
                pair_dir() / f"{prompts}.jsonl",
                options.work / name,
                sampling=Sampling(),
                max_new_tokens=num_tokens,
                limit=limit,
                force=True,
            )
        )
        counts[name] = len(found.responses)
    return counts


def made(options: argparse.Namespace) -> Made:
    """Apply the recipe, weigh the result, replay it beside the full-precision draft."""
    if options.recipe.startswith(GGUF):
        return recipe_gguf.made(options.recipe.removeprefix(GGUF), options.llamacpp, options.work)
    import torch  # noqa: F401  (its memory is not apply's)

    from quantdraft.quantize.apply import apply
    from quantdraft.quantize.ledger import byte_ledger

    recipe = load_recipe(options.recipe)
    calibration = options.work / CALIBRATION if recipe.needs_calibration else None
    output = checkpoint_dir(options.work, recipe.name)
    before, started, cpu_started = _peak_bytes(), time.perf_counter(), time.process_time()
    candidate = apply(recipe, str(DRAFT), output, calibration=calibration, force=True)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    peak = _peak_bytes()
    assert candidate.manifest is not None
    proof, ledger = candidate.manifest["proof"], byte_ledger(candidate)
    files = {info.file for info in candidate.tensors.values()}
    return Made(
        apply_seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_bytes=peak,
        start_bytes=before,
        disk_bytes=sum((candidate.path / name).stat().st_size for name in files),
        step_bytes=ledger.step_bytes(),
        context_step_bytes=ledger.step_bytes(CONTEXT),
        logit_error=proof["baseline_logit_distance"],
        reload_error=proof["logit_distance"],
        **replayed(DRAFT, candidate.path, options.work),
    )


def _peak_bytes() -> int:
    # What getrusage says of a child starts at its parent's: `exec` carries the mark over.
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        marks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        if marks:
            return int(marks[0]) * 1024
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024


def replayed(baseline: Path, candidate: Path, work: Path) -> dict[str, Any]:
    """Acceptance of both on the same tokens, by the names of `Made`'s fields."""
    import torch

    from quantdraft.checkpoints.tensors.loading import load_model
    from quantdraft.judge.acceptance import replay_rounds
    from quantdraft.judge.comparison.lengths import compare_acceptance
    from quantdraft.measure.replay import acceptance_probabilities
    from quantdraft.traffic.traffic import read_traffic

    asked = read_traffic(work / TRAFFIC)
    ids, arms = [response.prompt_id for response in asked.responses], []
    for path in (baseline, candidate):
        draft = load_model(path, torch.float32, torch.device("cpu"))
        arms.append(replay_rounds(ids, acceptance_probabilities(draft, asked, "greedy"), [K]))
    found = compare_acceptance(*arms, K)
    return {
        "baseline_rate": found.baseline_rate,
        "rate": found.candidate_rate,
        "loss": found.acceptance_rate_loss,
        "num_prompts": len(ids),
        "num_tokens": found.candidate.num_tokens,
    }


def tried(options: argparse.Namespace) -> list[Tried]:
    """The engines of this process: the native one and transformers, on the CPU."""
    import torch

    from quantdraft.checkpoints.checkpoint import open_checkpoint
    from quantdraft.quantize.proof.proof import probe_logits

    candidate = open_checkpoint(checkpoint_dir(options.work, options.recipe))
    wanted = probe_logits(candidate, torch.device("cpu"))
    return [_native(candidate, wanted), _transformers(candidate, wanted)]


def _native(candidate: Any, wanted: Any) -> Tried:
    """The probe's tokens through the native engine's own kernels."""
    import torch

    from quantdraft.engines.native.model import load_native
    from quantdraft.engines.native.session import Session
    from quantdraft.engines.native.weight_sources import stored_weights
    from quantdraft.errors import QuantDraftError
    from quantdraft.quantize.proof.proof import logit_distance

    ids = probe_ids(candidate)
    try:
        source = stored_weights(candidate)
        native = load_native(source, torch.float32, torch.device("cpu"))
        positions = torch.arange(ids.shape[1]).expand(ids.shape)
        with torch.inference_mode():
            logits = Session(native, *ids.shape).forward(ids, positions, ids.shape[1])
    except QuantDraftError as error:
        return Tried("native", "refuses", one_line(error))
    return Tried("native", "loads", ", ".join(native.kernels), logit_distance(logits, wanted))


def _transformers(candidate: Any, wanted: Any) -> Tried:
    """As the exported script does it: loaded plainly, then assisted generation with the target."""
    import torch
    from transformers import AutoModelForCausalLM

    from quantdraft.quantize.proof.proof import logit_distance

    ids, reasons = probe_ids(candidate), []
    for name in DTYPES:
        dtype = getattr(torch, name)
        try:
            draft = AutoModelForCausalLM.from_pretrained(candidate.path, dtype=dtype).eval()
            with torch.inference_mode():
                logits = draft(input_ids=ids).logits.float()
            target = AutoModelForCausalLM.from_pretrained(TARGET, dtype=dtype).eval()
            is_same = generated(target, ids[:1], draft) == generated(target, ids[:1])
        except Exception as error:  # each library behind it has kinds of its own
            reasons.append(f"{name}: {one_line(error)}")
            continue
        text = "the target's own text" if is_same else "another text than the target's"
        return Tried("transformers", "loads", f"{name}, {text}", logit_distance(logits, wanted))
    return Tried("transformers", "refuses", "; ".join(reasons))


def generated(target: Any, ids: Any, draft: Any = None) -> list[int]:
    """What the target generates greedily, alone or with a draft."""
    import torch

    settings = {} if draft is None else {"assistant_model": draft}
    if draft is not None:
        draft.generation_config.num_assistant_tokens = K
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        draft.generation_config.assistant_confidence_threshold = 0.0
    with torch.inference_mode():
        found = target.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NUM_GENERATED,
            **settings,
        )
    return [int(token) for token in found[0, ids.shape[1] :]]


def probe_ids(checkpoint: Any) -> Any:
    """The tokens of the proof's fixed probe, (probes, length)."""
    import torch

    from quantdraft.quantize.proof.proof import NUM_PROBES, PROBE_LENGTH, PROBE_SEED

    generator = torch.Generator().manual_seed(PROBE_SEED)
    num_tokens = int(checkpoint.text_config["vocab_size"])
    return torch.randint(num_tokens, (NUM_PROBES, PROBE_LENGTH), generator=generator)


def served(options: argparse.Namespace) -> Served:
    """The engine's server with this draft, asked a few prompts; its rounds beside replay's."""
    from quantdraft.engines.vllm.environment import find_vllm
    from quantdraft.traffic.traffic import read_traffic
    from tests.benchmarks.vllm_counters import counted

    if options.recipe.startswith(GGUF):
        gguf_type, asked = options.recipe.removeprefix(GGUF), read_traffic(options.work / SERVED)
        return recipe_gguf.served(gguf_type, options.llamacpp, options.work, asked)
    environment = find_vllm(options.vllm_python)
    path = checkpoint_dir(options.work, options.recipe)
    asked = read_traffic(options.work / SERVED)
    logs = options.work / "logs" / options.recipe
    shutil.rmtree(logs, ignore_errors=True)
    found, reasons = None, []
    for dtype in DTYPES:
        found = counted(environment, path, asked, logs, [dtype])
        reasons.append(found.undefined or "")
        if not FLOAT_TYPE.search(reasons[-1].removeprefix(dtype)):
            break
    assert found is not None
    name = f"vLLM {environment.version}"
    device = environment.device_type
    if found.undefined is not None:
        refused = Tried("vllm", "refuses", one_line("; ".join(reasons)), None, device)
        return Served(refused, None, found.seconds)
    counts = Counted(found.dtype, found.engine, found.replay, found.is_exact, found.same_text)
    return Served(
        Tried("vllm", "loads", f"{name}, {found.dtype}", None, device), counts, found.seconds
    )


def one_line(error: object) -> str:
    """The first line of an error that says something, within reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:400]


PARTS = {"traffic": traffic, "made": made, "tried": tried, "served": served}


def main(given: Sequence[str] | None = None) -> None:
    """Measure one part and write it, whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--recipe", default="")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vllm-python", type=Path)
    parser.add_argument("--llamacpp", type=Path)
    parser.add_argument("--num-tokens", type=int, default=128)
    parser.add_argument("--served-prompts", type=int, default=4)
    parser.add_argument("--served-tokens", type=int, default=64)
    options = parser.parse_args(given)
    found: Any = PARTS[options.part](options)
    plain = [asdict(each) for each in found] if isinstance(found, list) else found
    write_json(options.output, plain)


if __name__ == "__main__":
    main()
