"""The live check: rounds that the live loop counted, beside replay of the text that it wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.tensors.unpacking import quantized_modules, rounds_activations
from quantdraft.common.progress import bar, say
from quantdraft.common.resume import stage
from quantdraft.engines.kernels.dense import type_name
from quantdraft.engines.native.model import NativeModel, borrow, load_native
from quantdraft.engines.native.session import live_mode
from quantdraft.engines.native.weight_sources import stored_weights
from quantdraft.errors import UndefinedMetricError
from quantdraft.judge.acceptance import Floats, replay_rounds
from quantdraft.measure.live import LivePrompt, live_probabilities, run_live
from quantdraft.measure.near_ties import RoundBounds, bounded_rounds, input_step
from quantdraft.measure.subject import Subject
from quantdraft.record import LiveCheck
from quantdraft.record.terms import nearest_to_usual

OWN_TEXTS = (
    "the log does not say how it was sampled, and it is not the target's greedy text: the live "
    "loop is checked on text of its own. To say how the log was sampled, give --temperature (0: "
    "greedy)."
)


def check_live(
    subject: Subject,
    probabilities: Mapping[str, Sequence[Floats]],
    ks: tuple[int, ...],
    num_prompts: int,
    seed: int,
) -> tuple[LiveCheck, ...]:
    """Run the live loop of both arms on the first prompts, and hold it against replay.

    probabilities: acceptance probabilities of the traffic's own texts, by arm
    Returns nothing without a target, or for no prompts.
    """
    target = subject.models.target
    if target is None or num_prompts < 1:
        return ()
    k = nearest_to_usual(ks)  # one is proof enough, replay being exact for each
    inputs = {
        **subject.draft_facts("baseline", "candidate"),
        **subject.target_facts(),
        **subject.traffic_facts(),
        "k": k,
        "num_prompts": num_prompts,
        "seed": seed,
    }

    def compute() -> list[LiveCheck]:
        verifier = load_runnable(subject, target)
        return [
            check_arm(subject, verifier, arm, probabilities[arm], k, num_prompts, seed)
            for arm in ("baseline", "candidate")
        ]

    checks = tuple(stage(subject.run_dir, "live", inputs, list[LiveCheck], compute))
    if any(check.num_own_texts for check in checks):
        say(OWN_TEXTS)
    return checks


def check_arm(
    subject: Subject,
    target: NativeModel,
    arm: str,
    probabilities: Sequence[Floats],
    k: int,
    num_prompts: int,
    seed: int,
) -> LiveCheck:
    """Run one arm's live loop, and replay what it wrote; a divergent text is not replayed.

    probabilities: of the traffic's own texts, which hold for a loop that wrote the same
    """
    checkpoint = subject.draft(arm)
    draft = load_runnable(subject, checkpoint)
    # Every product of the draft is a float32 sum.
    is_exact = draft.is_exact and not rounds_activations(checkpoint)
    responses = subject.traffic.responses[:num_prompts]
    with bar(len(responses), f"live loop {arm}", "prompt") as progress:
        prompts = run_live(
            target,
            draft,
            replace(subject.traffic, responses=responses),
            num_speculative_tokens=k,
            rule=subject.rule,
            seed=seed,
            mode=live_mode(subject.device),
            progress=progress,
        )
    texts = [prompt.text for prompt in prompts]
    counted = [index for index, text in enumerate(texts) if text != "divergent"]
    some = [prompts[index] for index in counted]
    own = [probabilities[index] for index in counted]
    rounds = live_rounds(subject, checkpoint, some, own, k, is_exact)
    return LiveCheck(
        num_speculative_tokens=k,
        arm=arm,
        prompt_ids=tuple(prompt.response.prompt_id for prompt in some),
        num_drafts_live=tuple(float(prompt.run.num_drafts) for prompt in some),
        num_drafts_replayed=rounds.replayed,
        num_identical_texts=texts.count("identical"),
        num_near_ties=texts.count("near-tie"),
        num_divergent=texts.count("divergent"),
        is_expectation=is_expectation(subject),
        is_exact=is_exact,
        num_own_texts=texts.count("own"),
        num_drafts_low=rounds.low,
        num_drafts_high=rounds.high,
    )


def is_expectation(subject: Subject) -> bool:
    """Return whether the draft draws too: a text then has rounds in the mean alone."""
    return subject.rule in ("rejection", "exact_match") and not subject.sampling.is_greedy


def live_rounds(
    subject: Subject,
    checkpoint: Checkpoint,
    prompts: Sequence[LivePrompt],
    probabilities: Sequence[Floats],
    k: int,
    is_exact: bool,
) -> RoundBounds:
    """Replay the texts that the loop wrote under one draft.

    probabilities: of the traffic's own texts, for the same prompts
    """
    if not prompts:
        return RoundBounds(())
    ids = [prompt.response.prompt_id for prompt in prompts]
    if is_expectation(subject):
        assert subject.models.target is not None
        models = subject.load(subject.models.target), subject.load(checkpoint)
        drawn = live_probabilities(*models, prompts, subject.rule, subject.sampling)
        return RoundBounds(_count_rounds(ids, drawn, k))
    if is_exact and all(prompt.text == "identical" for prompt in prompts):
        return RoundBounds(_count_rounds(ids, probabilities, k))
    # The native kernels that are not exact compute in 16 bits.
    dtype = type_name(subject.dtype) if is_exact else "bfloat16"
    step = input_step(quantized_modules(checkpoint).values())
    texts = [prompt.response for prompt in prompts]
    found = bounded_rounds(subject.load(checkpoint), texts, k, dtype, step)
    return RoundBounds(found.replayed) if is_exact else found


def _count_rounds(ids: list[str], probabilities: Sequence[Floats], k: int) -> tuple[float, ...]:
    return tuple(replay_rounds(ids, probabilities, [k]).num_drafts[0].tolist())


def load_runnable(subject: Subject, checkpoint: Checkpoint) -> NativeModel:
    """Load a model on its own kernels, or dequantized where this machine has none for it."""
    try:
        return load_native(stored_weights(checkpoint), subject.dtype, subject.device)
    except UndefinedMetricError:
        return borrow(subject.load(checkpoint))
