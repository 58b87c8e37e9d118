"""Whole runs beside replay: a serving engine's speeds and counters, and the live loop's rounds."""

from __future__ import annotations

from collections import Counter

from quantdraft.record import Evaluation, LiveCheck, Served, ServedArm
from quantdraft.record.wording import (
    UNDEFINED,
    count,
    length,
    load_words,
    significant,
    undefined,
)
from quantdraft.report.blocks import Block, Paragraph, Section, Table

TITLES = {"vllm": "vLLM", "llamacpp": "llama.cpp"}
OWN_TEXTS = (
    "The log does not say how it was sampled, and it is not the target's greedy text: texts of its "
    "own were written, and nothing here shows that this target wrote the log. --temperature says "
    "how a log was sampled."
)
ORDER = ("autoregressive", "baseline", "candidate", "control")


def served_sections(evaluation: Evaluation) -> tuple[Section, ...]:
    """Return one section, or none where no engine was asked."""
    served = evaluation.served
    if served is None:
        return ()
    blocks: list[Block] = [
        Paragraph(_conditions(served, evaluation.known_analysis.served_load_error))
    ]
    if served.arms:
        blocks += [pace_table(served), counters_table(served)]
    if served.undefined:
        rows = tuple((arm, undefined(why)) for arm, why in served.undefined.items())
        blocks.append(Table(("Arm", "Why it was not served"), rows))
    return (Section(f"Served by {TITLES.get(served.engine, served.engine)}", tuple(blocks)),)


def pace_table(served: Served) -> Table:
    """Return the measured speeds; the time to the first token is in none of the others."""
    return Table.of(
        [_pace_row(served, arm) for arm in _arms(served)],
        range(1, 6),
        caption=(
            f"k = {served.num_speculative_tokens}. From a prompt's first token to its last, one "
            "request at a time; the first token's time is a median. The control is the baseline "
            "on a second server."
        ),
    )


def _pace_row(served: Served, arm: ServedArm) -> dict[str, str]:
    per_token, tau = served.ms_per_token(arm.name), arm.mean_acceptance_length
    per_round = _number(None if per_token is None else per_token * tau) if tau else "—"
    return {
        "Arm": arm.name,
        "Tokens/s": _number(None if per_token is None else 1e3 / per_token),
        "ms per token": _number(per_token),
        "ms per round": per_round,
        "First token, ms": _number(arm.median_first_token_ms),
        "Requests": count(len(arm.requests)),
    }


def counters_table(served: Served) -> Table:
    """Return the engine's own counters beside those that replay of its text gives."""
    return Table.of(
        [_counter_row(served, arm) for arm in _arms(served)],
        {1, 2, 3, 4, 6, 7, 8},
        caption=(
            "Replayed: a teacher-forced pass over the text that the engine wrote, in its float "
            "type. In float32 and with weight-only drafts the rounds must be equal; in 16 bits, "
            "and where the engine rounds activations in its own kernels, near-ties of the draft "
            "fall either way: in brackets, the fewest and the most rounds that they allow."
        ),
    )


def _counter_row(served: Served, arm: ServedArm) -> dict[str, str]:
    texts, replayed = [request.text for request in arm.requests], arm.replayed
    rounds, fewest, most = (count(number) for number in arm.replayed_rounds)
    near = f"{rounds} ({fewest} to {most})" if arm.knows_near_ties else rounds
    equal = "in the mean" if served.is_expectation else f"{arm.num_equal} of {len(replayed)}"
    per_position = ", ".join(count(number) for number in arm.num_accepted_per_pos)
    counted = count(sum(request.num_drafts for request in replayed))
    return {
        "Arm": arm.name,
        "Rounds, engine": counted if replayed else "—",
        "Rounds, replayed": near if replayed else "—",
        "Requests with equal rounds": equal if replayed else "—",
        "τ": length(arm.mean_acceptance_length) if replayed else "—",
        "Accepted per position": per_position if replayed else "—",
        "Identical texts": count(texts.count("identical")),
        "Near-ties": count(texts.count("near-tie")),
        "Divergent": count(texts.count("divergent")),
    }


def _visits(served: Served) -> int:
    """Return how often an arm answered a prompt, at most."""
    prompts = Counter(r.prompt_id for arm in served.arms.values() for r in arm.requests)
    return -(-max(prompts.values(), default=0) // max(len(served.arms), 1))


def _loads_words(served: Served, load_error: float | None) -> str:
    """Return how often the servers were started, and whether intervals hold what that changes."""
    num_loads = max((len(arm.loads) for arm in served.arms.values()), default=0)
    if num_loads > 1 and load_error is not None:
        return (
            f"Each server was started {num_loads} times; what the starts differ by is in the "
            "intervals."
        )
    return (
        "What differs from one start of a server to the next is in no interval: each was started "
        "once, or it was not recorded."
    )


def _conditions(served: Served, load_error: float | None) -> str:
    turns = (
        "all servers up at once, asked in turns"
        if served.is_interleaved
        else "the servers ran one after another"
    )
    words = (
        f"{TITLES.get(served.engine, served.engine)} {served.version} on {served.device}, "
        f"{served.dtype}: {turns}, every prompt {_visits(served)} times in each arm."
    )
    if served.speculative:
        given = ", ".join(f"{key} = {value}" for key, value in served.speculative.items())
        words += f" Own settings: {given}."
    if any(r.text == "own" for arm in served.arms.values() for r in arm.requests):
        words += f" {OWN_TEXTS}"
    return f"{words} {_loads_words(served, load_error)} {load_words(served.load_average)}"


def _arms(served: Served) -> list[ServedArm]:
    return [served.arms[name] for name in ORDER if name in served.arms]


def _number(value: float | None) -> str:
    return UNDEFINED if value is None else significant(value)


def live_section(evaluation: Evaluation) -> Section:
    """Return the live loop's rounds and texts against the replayed ones."""
    if not evaluation.live:
        text = "The live loop was not run: the replayed counts are unproven in this record."
        return Section("Live loop", (Paragraph(text),))
    return Section(
        "Live loop",
        (
            Paragraph(
                "The same prompts through the propose, verify, accept loop. Greedy rounds must be "
                "equal prompt by prompt; where the draft draws too they agree in the mean, and in "
                "16 bits they lie in what near-ties of the draft allow."
                + (f" {OWN_TEXTS}" if any(c.num_own_texts for c in evaluation.live) else "")
            ),
            Table.of([_live_row(check) for check in evaluation.live], range(1, 9)),
        ),
    )


def _live_row(check: LiveCheck) -> dict[str, str]:
    num_prompts = len(check.prompt_ids)
    equal = "in the mean" if check.is_expectation else f"{check.num_equal} of {num_prompts}"
    return {
        "Arm": check.arm,
        "k": str(check.num_speculative_tokens),
        "Prompts": count(num_prompts),
        "Rounds, live": count(sum(check.num_drafts_live)),
        "Rounds, replayed": count(sum(check.num_drafts_replayed)),
        "Prompts with equal rounds": equal,
        "Identical texts": count(check.num_identical_texts),
        "Near-ties": count(check.num_near_ties),
        "Divergent": count(check.num_divergent),
    }
