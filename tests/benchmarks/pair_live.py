"""The live loop's speed over all prompts of a traffic, beside what the equation predicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.tensors.devices import pick_dtype
from quantdraft.engines.native.model import NativeModel, load_native
from quantdraft.engines.native.session import Session, decoding_mode
from quantdraft.engines.native.weight_sources import stored_weights
from quantdraft.measure.run_traffic import default_rule
from quantdraft.measure.speculation import LiveBatch, speculate
from quantdraft.measure.verification import RoundPlan
from quantdraft.record import Evaluation
from quantdraft.record.choices import Mode
from quantdraft.traffic.responses import Response
from quantdraft.traffic.traffic import Sampling, Traffic
from tests.benchmarks.gpu_loop import decode_timed, status

MAX_GAP = 0.03  # of the live speedup from the predicted one


class Loop:
    """Two models that decode one prompt at a time; what is recorded once serves all prompts."""

    def __init__(
        self,
        target: NativeModel,
        draft: NativeModel | None,
        traffic: Traffic,
        k: int,
        modes: Mapping[str, Mode],
    ) -> None:
        """modes: of "target" and "draft" as their steps were timed; the device's where absent."""
        self.end_ids = frozenset(target.end_token_ids)
        self.plan = RoundPlan(k, default_rule(traffic), traffic.sampling or Sampling())
        longest = max(num_tokens(response) for response in traffic.responses)
        models = {"target": target} | ({} if draft is None else {"draft": draft})
        self.sessions = [
            Session(m, 1, longest + k + 1, modes.get(name) or decoding_mode(m, device_of(m)))
            for name, m in models.items()
        ]

    def run(self, response: Response, seed: int) -> tuple[tuple[int, ...], int, float]:
        """The text of at most as many tokens as the response's, its rounds, and the seconds.

        A prompt on whose way something was recorded is decoded again.
        """

        def decode(verifier: Session, draft: Session | None = None) -> LiveBatch:
            return speculate(
                verifier,
                draft,
                [response.prompt_token_ids],
                self.plan,
                max_new_tokens=[len(response.response_token_ids)],
                eos_token_ids=self.end_ids,
                seeds=[seed],
            )

        batch = decode_timed(self.sessions, decode)
        return batch.runs[0].token_ids, batch.runs[0].num_drafts, batch.decode_seconds


def num_tokens(response: Response) -> int:
    """Of prompt and response."""
    return len(response.prompt_token_ids) + len(response.response_token_ids)


def device_of(native: NativeModel) -> torch.device:
    """Where its weights are."""
    device: torch.device = native.model.embedding.device
    return device


def loaded(path: Path, device: torch.device, rows: Sequence[int]) -> NativeModel:
    """A checkpoint on its own kernels; UndefinedMetricError where there are none."""
    source = stored_weights(open_checkpoint(path))
    return load_native(source, pick_dtype("auto", device), device, rows)


def live_speed(
    target: Path,
    draft: Path | None,
    traffic: Traffic,
    k: int,
    device: torch.device,
    modes: Mapping[str, Mode] = {},
) -> dict[str, Any]:
    """Decode every prompt; the first token of a text is the prefill's, in no time and no count.

    k = 0: the target alone. The longest and the shortest prompt run once before the others.

    modes: of "target" and "draft", as their steps were timed
    """
    verifier = loaded(target, device, (1, k + 1))
    proposer = None if draft is None else loaded(draft, device, (1, 2))
    loop = Loop(verifier, proposer, traffic, k, modes)
    by_length = sorted(traffic.responses, key=num_tokens)
    for response in (by_length[-1], by_length[0]):
        loop.run(response, seed=0)
    texts: Counter[str] = Counter()
    emitted, rounds, seconds = 0, 0, 0.0
    for seed, response in enumerate(traffic.responses):
        found, num_drafts, spent = loop.run(response, seed)
        emitted, rounds, seconds = emitted + len(found) - 1, rounds + num_drafts, seconds + spent
        if loop.plan.sampling.is_greedy:
            wanted = response.response_token_ids
            texts[status(verifier, response.prompt_token_ids, wanted, found)] += 1
    return {
        "mode": [session.mode for session in loop.sessions],
        "num_prompts": len(traffic.responses),
        "num_tokens": emitted,
        "num_drafts": rounds,
        "decode_seconds": seconds,
        "ms_per_token": 1e3 * seconds / max(1, emitted),
        "texts": dict(texts),
    }


def rows(
    live: dict[str, Any], records: dict[str, Evaluation], temperature: str, ks: Sequence[int]
) -> list[dict[str, Any]]:
    """Live and predicted speedup over the target alone, of each draft and k.

    live: by temperature, arm and k; records: of each recipe at this temperature
    """
    alone = live.get(f"{temperature}:target:0", {}).get("ms_per_token")
    found: list[dict[str, Any]] = []
    for recipe, record in records.items():
        for arm in ("baseline", "candidate") if not found else ("candidate",):
            for k in ks:
                own = live.get(f"{temperature}:{recipe if arm == 'candidate' else arm}:{k}", {})
                found.append(
                    row(arm if arm == "baseline" else recipe, k, alone, own, record)
                    | {"temperature": temperature}
                )
    return found


def row(
    name: str, k: int, alone: float | None, live: dict[str, Any], record: Evaluation
) -> dict[str, Any]:
    """One draft at one k; what is not known is None, with the reason."""
    points = {point.candidate_num_speculative_tokens: point for point in record.equal_k}
    speed = points[k].of("baseline" if name == "baseline" else "candidate")
    predicted = speed.speedup_over_autoregressive
    ms = live.get("ms_per_token")
    measured = alone / ms if alone and ms else None
    gap = measured / predicted.value - 1 if measured and predicted else None
    return {
        "draft": name,
        "k": k,
        "live_speedup": measured,
        "predicted_speedup": None if predicted is None else predicted.value,
        "predicted_low": None if predicted is None else predicted.low,
        "predicted_high": None if predicted is None else predicted.high,
        "gap": gap,
        "is_met": None if gap is None else abs(gap) <= MAX_GAP,
        "texts": live.get("texts"),
        "undefined": live.get("undefined")
        or (record.latency.undefined.get("candidate") if predicted is None else None),
    }


def lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as a table for the screen."""
    said = [f"{'temperature':>11}  {'draft':<14} {'k':>2}  {'live':>6}  {'predicted':>9}  gap"]
    for each in found:
        numbers = [each["live_speedup"], each["predicted_speedup"]]
        live, predicted = ("-" if n is None else f"{n:.3f}x" for n in numbers)
        gap = "-" if each["gap"] is None else f"{100 * each['gap']:+.1f} %"
        why = f"  {each['undefined']}" if each["undefined"] else ""
        over = "" if each["is_met"] in (True, None) else f"  over {100 * MAX_GAP:.0f} %"
        said.append(
            f"{each['temperature']:>11}  {each['draft']:<14} {each['k']:>2}  {live:>6}  "
            f"{predicted:>9}  {gap}{over}{why}"
        )
    return said
