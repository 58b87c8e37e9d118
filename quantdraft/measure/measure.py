"""The measurements of one run, each kept as a stage when it is done: a killed run resumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.claims import claims_but_not_quantized
from quantdraft.checkpoints.tensors.loading import load_model, pick_dtype
from quantdraft.checkpoints.tensors.unpacking import quantized_modules, rounds_activations
from quantdraft.common.progress import bar, say, share_bar
from quantdraft.common.resume import stage
from quantdraft.engines.native.model import NativeModel, borrow, load_native
from quantdraft.engines.native.session import live_mode
from quantdraft.engines.native.weight_sources import stored_weights
from quantdraft.engines.registry import measured_engine
from quantdraft.errors import UndefinedMetricError
from quantdraft.judge.acceptance import Floats, replay_rounds, rounds_between
from quantdraft.measure.latency.grid import Place, Review, measure_latency
from quantdraft.measure.live import LivePrompt, live_keep, run_live
from quantdraft.measure.models import Models
from quantdraft.measure.near_ties import TextKeeps, input_step, text_keeps
from quantdraft.measure.probabilities import keeps_on_disk
from quantdraft.measure.replay import keep_probabilities
from quantdraft.measure.served.serve import serve, served_k
from quantdraft.measure.served.served_run import Serve
from quantdraft.measure.settings import EvaluateSettings
from quantdraft.quantize.proof.proof import probe_logits
from quantdraft.record import AcceptanceRule, Latency, LiveCheck, Served
from quantdraft.record.provenance import model_identity
from quantdraft.record.terms import nearest_to_usual
from quantdraft.traffic.traffic import Sampling, Traffic, token_counts

OWN_TEXTS = (
    "the log does not say how it was sampled, and it is not the target's greedy text: the live "
    "loop is checked on text of its own. To say how the log was sampled, give --temperature (0: "
    "greedy)."
)


@dataclass(frozen=True, slots=True)
class Measuring:
    """What is measured, on what, and where its stages are kept."""

    settings: EvaluateSettings
    models: Models
    traffic: Traffic
    rule: AcceptanceRule
    device: torch.device
    run_dir: Path
    # What half of the timing says of the other half; see `benchmark.Plan`.
    review: Callable[[Latency], Review] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The float type of replay and of the live loop."""
        return pick_dtype(self.settings.models.dtype, self.device)

    def keep(self, arm: str) -> list[NDArray[np.float64]]:
        """Keep probabilities of every response token under one draft; one model in memory.

        A killed replay goes on after its last whole batch; the numbers stay on the disk.
        """
        responses = self.traffic.responses
        num_tokens = token_counts(responses).response.tolist()
        shared = self.settings.shared_stages if arm == "baseline" else None
        inputs = self._inputs(arm) | {"prompts": [r.prompt_id for r in responses]}
        name, where = f"keep-{arm}", shared or self.run_dir
        with keeps_on_disk(where, name, inputs, num_tokens) as keeps:
            if keeps.is_whole:
                return keeps.arrays()
            draft = self._load(getattr(self.models, arm))
            with bar(len(responses), f"replay {arm}", "prompt") as progress:
                return keep_probabilities(draft, self.traffic, self.rule, progress, keeps)

    def latency(self) -> Latency:
        """Step times of all arms at the operating point, or the reason why there are none."""
        return self._latencies()[0]

    def grid(self) -> tuple[Latency, ...]:
        """The same at the further batch sizes and contexts that were asked for."""
        return tuple(self._latencies()[1:])

    def _latencies(self) -> list[Latency]:
        target = self.models.target
        if not self.settings.serving.is_native:
            return [self._served_latency()]
        if self.settings.timing.no_latency:
            return [self._unmeasured("latency was not asked for (--no-latency)")]
        if target is None:
            return [self._unmeasured("the target is not at hand: give --target to time it")]
        inputs = (
            self._inputs("baseline")
            | self._inputs("candidate")
            | {
                "ks": self.settings.ks,
                "batch_size": self.settings.timing.batch_size,
                "context_length": self.context_length,
                "more_points": self.more_points,
                "mode": self.settings.timing.mode,
                "seconds": self.settings.timing.latency_seconds,
                "threads": torch.get_num_threads(),
            }
        )

        def keep(place: Place, measure: Callable[[], Latency]) -> Latency:
            name = "-".join(map(str, ("latency", *place)))
            return stage(self.run_dir, name, inputs, Latency, measure)

        def compute() -> list[Latency]:
            with share_bar("latency") as progress:
                measured = measure_latency(
                    target,
                    self.models.baseline,
                    self.models.candidate,
                    ks=self.settings.ks,
                    batch_size=self.settings.timing.batch_size,
                    context_length=self.context_length,
                    device=self.device,
                    max_seconds=self.settings.timing.latency_seconds,
                    more_points=self.more_points,
                    mode=self.settings.timing.mode,
                    progress=progress,
                    keep=keep,
                    review=self.review,
                )
                return list(measured)

        return stage(self.run_dir, "latency", inputs, list[Latency], compute)

    def live(self, keeps: dict[str, list[NDArray[np.float64]]]) -> tuple[LiveCheck, ...]:
        """The live loop of both arms on the first prompts, as proof of the replay."""
        target, num_prompts = self.models.target, self.settings.live_prompts
        if target is None or num_prompts < 1 or not self.settings.serving.is_native:
            return ()
        k = nearest_to_usual(self.settings.ks)  # one is proof enough, replay being exact for each
        inputs = (
            self._inputs("baseline")
            | self._inputs("candidate")
            | {
                "k": k,
                "num_prompts": num_prompts,
                "seed": self.settings.seed,
            }
        )

        def compute() -> list[LiveCheck]:
            loaded = self._native(target)
            return [self._live_arm(loaded, arm, k, keeps[arm]) for arm in ("baseline", "candidate")]

        checks = tuple(stage(self.run_dir, "live", inputs, list[LiveCheck], compute))
        if any(check.num_own_texts for check in checks):
            say(OWN_TEXTS)
        return checks

    def served(self) -> Served | None:
        """Return what an engine did with the traffic; None where none was asked for."""
        if self.settings.serving.is_native:
            return None
        serving = self.settings.serving
        limit, k = serving.num_prompts, served_k(serving, self.settings.ks)
        some = replace(self.traffic, responses=self.traffic.responses[:limit])
        inputs = (
            self._inputs("baseline")
            | self._inputs("candidate")
            | {
                "k": k,
                "prompts": [response.prompt_id for response in some.responses],
                "seed": self.settings.seed,
                "engine": [str(serving.path), *serving.urls],
                "given": [*serving.spec, *serving.args],
                "num_loads": serving.num_loads,
            }
        )
        run = Serve(
            self.settings, self.models, some, self.rule, self.device, self.dtype, self.run_dir, k
        )
        return stage(self.run_dir, "served", inputs, Served, lambda: serve(run))

    def _served_latency(self) -> Latency:
        """Return no step times: an engine shows none. An arm not served has its own reason."""
        served = self.served()
        assert served is not None
        title = measured_engine(served.engine).title
        none = self._unmeasured(f"{title} shows no single steps; its speed is of whole requests")
        own = {
            "target" if arm == "autoregressive" else arm: why
            for arm, why in served.undefined.items()
        }
        undefined = none.undefined | own
        return replace(none, engine=served.engine, device=served.device, undefined=undefined)

    def has_identical_logits(self) -> bool:
        """True when the candidate's logits on a probe are the baseline's to the last bit."""
        inputs = self._inputs("baseline") | self._inputs("candidate")

        def compute() -> bool:
            baseline, candidate = (
                probe_logits(checkpoint, self.device)
                for checkpoint in (self.models.baseline, self.models.candidate)
            )
            return torch.equal(baseline, candidate)

        return stage(self.run_dir, "probe", inputs, bool, compute)

    def _live_arm(
        self, target: NativeModel, arm: str, k: int, keep: list[NDArray[np.float64]]
    ) -> LiveCheck:
        checkpoint: Checkpoint = getattr(self.models, arm)
        draft = self._native(checkpoint)
        num_prompts = min(self.settings.live_prompts, len(self.traffic.responses))
        some = replace(self.traffic, responses=self.traffic.responses[:num_prompts])
        with bar(num_prompts, f"live loop {arm}", "prompt") as progress:
            prompts = run_live(
                target,
                draft,
                some,
                num_speculative_tokens=k,
                rule=self.rule,
                seed=self.settings.seed,
                mode=live_mode(self.device),
                progress=progress,
            )
        return self._live_check(arm, draft.is_exact, k, prompts, keep)

    def _live_check(
        self,
        arm: str,
        is_exact: bool,
        k: int,
        prompts: Sequence[LivePrompt],
        keep: Sequence[Floats],
    ) -> LiveCheck:
        """What the loop counted beside replay of what it wrote; a divergent text is not replayed.

        is_exact: every product of the draft is a float32 sum
        keep: of the traffic's own texts, which hold for a loop that wrote the same
        """
        is_exact = is_exact and not rounds_activations(getattr(self.models, arm))
        counted = [i for i, prompt in enumerate(prompts) if prompt.text != "divergent"]
        some = [prompts[i] for i in counted]
        rounds = self._live_rounds(arm, is_exact, k, some, [keep[i] for i in counted])
        texts = [prompt.text for prompt in prompts]
        return LiveCheck(
            num_speculative_tokens=k,
            arm=arm,
            prompt_ids=tuple(prompt.response.prompt_id for prompt in some),
            num_drafts_live=tuple(float(prompt.run.num_drafts) for prompt in some),
            num_drafts_replayed=rounds[0],
            num_identical_texts=texts.count("identical"),
            num_near_ties=texts.count("near-tie"),
            num_divergent=texts.count("divergent"),
            is_expectation=self._is_expectation,
            is_exact=is_exact,
            num_own_texts=texts.count("own"),
            num_drafts_low=rounds[1],
            num_drafts_high=rounds[2],
        )

    def _live_rounds(
        self,
        arm: str,
        is_exact: bool,
        k: int,
        prompts: Sequence[LivePrompt],
        keep: Sequence[Floats],
    ) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        """Rounds of the loop's texts; where arithmetic is not exact, the fewest and most too."""
        checkpoint: Checkpoint = getattr(self.models, arm)
        ids = [prompt.response.prompt_id for prompt in prompts]
        if not prompts:
            return (), (), ()
        if self._is_expectation:
            return _rounds(ids, self._drawn_keep(checkpoint, prompts), k), (), ()
        if is_exact and all(prompt.text == "identical" for prompt in prompts):
            return _rounds(ids, keep, k), (), ()
        found = self._text_keeps(checkpoint, prompts, is_exact)
        kept = [each.keep for each in found]
        replayed = _rounds(ids, kept, k)
        if is_exact:
            return replayed, (), ()
        return replayed, *rounds_between(ids, kept, [each.is_near_tie for each in found], k)

    @property
    def _is_expectation(self) -> bool:
        """True where the draft draws too: a text then has rounds in the mean alone."""
        sampling = self.traffic.sampling or Sampling()
        return self.rule in ("rejection", "exact_match") and not sampling.is_greedy

    def _drawn_keep(self, checkpoint: Checkpoint, prompts: Sequence[LivePrompt]) -> list[Floats]:
        assert self.models.target is not None
        loaded = self._load(self.models.target), self._load(checkpoint)
        return live_keep(*loaded, prompts, self.rule, self.traffic.sampling or Sampling())

    def _text_keeps(
        self, checkpoint: Checkpoint, prompts: Sequence[LivePrompt], is_exact: bool
    ) -> list[TextKeeps]:
        """Of the loop's own texts. The native kernels that are not exact compute in 16 bits."""
        dtype = str(self.dtype).removeprefix("torch.") if is_exact else "bfloat16"
        step = input_step(quantized_modules(checkpoint).values())
        texts = [prompt.response for prompt in prompts]
        return text_keeps(self._load(checkpoint), texts, dtype, step)

    def _native(self, checkpoint: Checkpoint) -> NativeModel:
        """A model on its own kernels, or dequantized where this machine has none for it."""
        try:
            return load_native(stored_weights(checkpoint), self.dtype, self.device)
        except UndefinedMetricError:
            return borrow(self._load(checkpoint))

    def _load(self, checkpoint: Checkpoint) -> Any:
        """A checkpoint with a false claim is read as what it holds; the verdict has the alarm."""
        is_false = claims_but_not_quantized(checkpoint) is not None
        return load_model(checkpoint.path, self.dtype, self.device, ignore_quantization=is_false)

    def _unmeasured(self, reason: str) -> Latency:
        return Latency(
            engine="native",
            device=str(self.device),
            num_threads=torch.get_num_threads(),
            batch_size=self.settings.timing.batch_size,
            context_length=self.context_length,
            arms={},
            undefined=dict.fromkeys(("baseline", "candidate", "control", "target"), reason),
        )

    @property
    def context_length(self) -> int:
        """The user's, or the middle of the traffic's own contexts: half of a response is behind."""
        if self.settings.timing.context_length is not None:
            return self.settings.timing.context_length
        return int(np.median(self._context_lengths))

    @property
    def more_points(self) -> tuple[tuple[int, int], ...]:
        """Every batch with every context of the user's lists; without lists there are none.

        Contexts default to the traffic's own range: its 10th, 50th and 90th percentile.
        """
        batch_sizes, contexts = (
            self.settings.timing.batch_sizes,
            self.settings.timing.context_lengths,
        )
        if batch_sizes is None and contexts is None:
            return ()
        if contexts is None:
            found = np.percentile(self._context_lengths, [10, 50, 90])
            contexts = tuple(sorted({max(16, round(length / 16) * 16) for length in found}))
        return tuple(
            (b, c) for b in batch_sizes or (self.settings.timing.batch_size,) for c in contexts
        )

    @property
    def _context_lengths(self) -> list[int]:
        counts = token_counts(self.traffic.responses)
        return [int(length) for length in counts.prompt + counts.response // 2]

    def _inputs(self, arm: str) -> dict[str, Any]:
        identity = model_identity(getattr(self.models, arm))
        target = self.models.target
        return {
            arm: identity["sha256"],
            "target": None if target is None else model_identity(target)["sha256"],
            "traffic": self.traffic.sha256,
            "rule": self.rule,
            "sampling": _plain(self.traffic.sampling),
            "dtype": str(self.dtype),
            "device": str(self.device),
        }


def _plain(sampling: Sampling | None) -> dict[str, Any] | None:
    return None if sampling is None else asdict(sampling)


def _rounds(ids: list[str], keep: Sequence[Floats], k: int) -> tuple[float, ...]:
    return tuple(replay_rounds(ids, keep, [k]).num_drafts[0].tolist())
