"""What a serving engine delivered: tokens per second of every arm, and its counters."""

from __future__ import annotations

from collections import Counter

from quantdraft.record import Evaluation, Served, ServedArm
from quantdraft.record.wording import (
    UNDEFINED,
    count,
    length,
    load_words,
    significant,
    undefined,
)
from quantdraft.report.blocks import Block, Paragraph, Section, Table
from quantdraft.report.sections.live import OWN_TEXTS

TITLES = {"vllm": "vLLM", "llamacpp": "llama.cpp"}
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
    return Table(
        columns=("Arm", "Tokens/s", "ms per token", "ms per round", "First token, ms", "Requests"),
        rows=tuple(_pace_row(served, arm) for arm in _arms(served)),
        numeric=frozenset(range(1, 6)),
        caption=(
            f"k = {served.num_speculative_tokens}. From a prompt's first token to its last, one "
            "request at a time; the first token's time is a median. The control is the baseline "
            "on a second server."
        ),
    )


def _pace_row(served: Served, arm: ServedArm) -> tuple[str, ...]:
    per_token, tau = served.ms_per_token(arm.name), arm.mean_acceptance_length
    return (
        arm.name,
        _number(None if per_token is None else 1e3 / per_token),
        _number(per_token),
        _number(None if per_token is None else per_token * tau) if tau else "—",
        _number(arm.median_first_token_ms),
        count(len(arm.requests)),
    )


def counters_table(served: Served) -> Table:
    """Return the engine's own counters beside those that replay of its text gives."""
    return Table(
        columns=(
            "Arm",
            "Rounds, engine",
            "Rounds, replayed",
            "Requests with equal rounds",
            "τ",
            "Accepted per position",
            "Identical texts",
            "Near-ties",
            "Divergent",
        ),
        rows=tuple(_counter_row(served, arm) for arm in _arms(served)),
        numeric=frozenset({1, 2, 3, 4, 6, 7, 8}),
        caption=(
            "Replayed: a teacher-forced pass over the text that the engine wrote, in its float "
            "type. In float32 and with weight-only drafts the rounds must be equal; in 16 bits, "
            "and where the engine rounds activations in its own kernels, near-ties of the draft "
            "fall either way: in brackets, the fewest and the most rounds that they allow."
        ),
    )


def _counter_row(served: Served, arm: ServedArm) -> tuple[str, ...]:
    texts = [request.text for request in arm.requests]
    status = [count(texts.count(name)) for name in ("identical", "near-tie", "divergent")]
    replayed = arm.replayed
    if not replayed:
        return (arm.name, "—", "—", "—", "—", "—", *status)
    rounds, fewest, most = (count(number) for number in arm.replayed_rounds)
    return (
        arm.name,
        count(sum(request.num_drafts for request in replayed)),
        f"{rounds} ({fewest} to {most})" if arm.knows_near_ties else rounds,
        "in the mean" if served.is_expectation else f"{arm.num_equal} of {len(replayed)}",
        length(arm.mean_acceptance_length),
        ", ".join(count(number) for number in arm.num_accepted_per_pos),
        *status,
    )


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
