"""Which responses of a traffic are replayed: each that is left out is counted and named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.configs import num_positions
from quantdraft.common.progress import say
from quantdraft.errors import TrafficError
from quantdraft.measure.models import Models
from quantdraft.record.wording import counted
from quantdraft.traffic.jsonl import pick_items
from quantdraft.traffic.ledger import left_out_of
from quantdraft.traffic.parts import (
    HALF,
    Part,
    calibration_part,
    conversation_of,
    part_from,
    place_of,
)
from quantdraft.traffic.traffic import Traffic, token_counts


def usable(traffic: Traffic, models: Models, is_held_out: bool = False) -> Traffic:
    """Return the traffic without overlong responses, repeats, and prompts of the calibration.

    is_held_out: without the half that `apply` would calibrate on, also where this one was not
    Raises TrafficError for token ids that the draft lacks, and where nothing is left.
    """
    _require_known_tokens(traffic, int(models.candidate.text_config["vocab_size"]))
    tell_reading(traffic)
    # First, so that the same conversations are left for every candidate.
    judged = without_calibration(traffic, models.candidate, is_held_out)
    judged = without_calibration(judged, models.baseline)
    return without_repeats(without_overlong(judged, (models.candidate, models.target)))


def tell_reading(traffic: Traffic) -> None:
    """Say what a log was read as, what was left out of it and why, and what is uncertain in it."""
    reading = traffic.reading
    if reading is None:
        for each in left_out_of(traffic.skipped):
            say(f"left out: {each.sentence}")
        return
    say(reading.sentence)
    for each in reading.left_out:
        say(f"left out: {each.sentence}")
    for warning in reading.warnings:
        say(f"warning: {warning}")


def _require_known_tokens(traffic: Traffic, vocab_size: int) -> None:
    for response in traffic.responses:
        largest = max(*response.prompt_token_ids, *response.response_token_ids)
        if largest >= vocab_size:
            raise TrafficError(
                f"prompt {response.prompt_id!r} has token id {largest}, but the draft's vocabulary "
                f"ends at {vocab_size - 1}: the traffic is of another tokenizer."
            )


def without_overlong(traffic: Traffic, models: Sequence[Checkpoint | None]) -> Traffic:
    """Return the traffic without responses that go beyond the positions of a model.

    No engine runs a model there. Raises TrafficError where nothing fits.
    """
    limits = [
        (positions, model.name)
        for model in models
        if model is not None and (positions := num_positions(model.text_config)) is not None
    ]
    if not limits:
        return traffic
    limit, name = min(limits)
    counts = token_counts(traffic.responses)
    kept = np.flatnonzero(counts.prompt + counts.response <= limit).tolist()
    words = f"longer, with their prompts, than the {limit} positions of '{name}'"
    if not kept:
        raise TrafficError(f"all responses are {words}. Give shorter ones.")
    return _keep_only(traffic, kept, "response", words)


def without_repeats(traffic: Traffic) -> Traffic:
    """Return the traffic with each pair of prompt and response once.

    Copies say nothing new; resampling them as if they did would make every interval too narrow.
    """
    seen: set[int] = set()
    kept = []
    for index, response in enumerate(traffic.responses):
        pair = hash((response.prompt_token_ids, response.response_token_ids))
        if pair not in seen:
            seen.add(pair)
            kept.append(index)
    return _keep_only(traffic, kept, "response", "that repeat another to the token")


def without_calibration(
    traffic: Traffic, candidate: Checkpoint, is_held_out: bool = False
) -> Traffic:
    """Return the traffic without the prompts that the candidate was calibrated or trained on.

    On them the candidate looks better than it is. Of a part of the traffic none of its
    conversations is left, and no prompt that one of them has too. Raises TrafficError where nothing
    is left.

    is_held_out: leave out the half that `apply` calibrates on, where this candidate saw none of it
    """
    for word, seen in _seen_by(candidate):
        left = _without_seen(traffic, candidate, seen, word)
        is_held_out = is_held_out and left is traffic
        traffic = left
    if not is_held_out:
        return traffic
    half = calibration_part(traffic.responses, HALF, traffic.sha256)
    if half is None:
        raise TrafficError("one conversation has no half to hold out. Leave out --held-out.")
    return _without_part(traffic, half, "the others are what recipes are calibrated on")


def _seen_by(model: Checkpoint) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what a model has seen of a traffic, by its manifest, and what it was made of it."""
    for key, word in (("calibration", "calibrated"), ("training", "trained")):
        seen = (model.manifest or {}).get(key)
        if seen:
            yield word, seen


def _without_seen(
    traffic: Traffic, candidate: Checkpoint, seen: dict[str, Any], word: str
) -> Traffic:
    """Return the traffic without what a manifest says was seen; the same if it is another's."""
    part = part_from(seen.get("part"))
    if part is not None and part.of_sha256 == traffic.sha256:
        if traffic.part.get("without") == part.as_record():
            return traffic
        return _without_part(traffic, part, f"'{candidate.name}' was {word} on the others")
    split = part_from(seen.get("split"))
    if split is not None and split.of_sha256 == traffic.sha256:
        raise TrafficError(
            f"'{candidate.path}' was {word} on a part of this traffic, '{seen.get('path')}'. "
            "Evaluate on another part, which `quantdraft traffic --split` wrote beside it."
        )
    if seen.get("sha256") == traffic.sha256:
        return _without_prompts(traffic, candidate, set(seen["prompt_ids"]), word)
    return traffic


def _without_prompts(traffic: Traffic, candidate: Checkpoint, ids: set[str], word: str) -> Traffic:
    kept = [i for i, r in enumerate(traffic.responses) if r.prompt_id not in ids]
    if not kept:
        raise TrafficError(
            f"'{candidate.path}' was {word} on all of this traffic. Evaluate on other prompts."
        )
    return _keep_only(traffic, kept, "prompt", f"that it was {word} on")


def _without_part(traffic: Traffic, part: Part, why: str) -> Traffic:
    """Return the other conversations; what was left out stands in the record."""
    inside, outside, seen = set[str](), dict[str, list[int]](), set[int]()
    for index, response in enumerate(traffic.responses):
        conversation = conversation_of(response)
        if part.holds(place_of(conversation)):
            inside.add(conversation)
            seen.add(hash(response.prompt_token_ids))
        else:
            outside.setdefault(conversation, []).append(index)
    num_all = len(inside) + len(outside)
    kept = [
        index
        for indices in outside.values()
        if not any(hash(traffic.responses[i].prompt_token_ids) in seen for i in indices)
        for index in indices
    ]
    if not kept:
        raise TrafficError(
            "no conversation of this traffic is left: each lies in the part that was seen, "
            "or repeats a prompt of it. Evaluate on another file."
        )
    rest = len({conversation_of(traffic.responses[i]) for i in kept})
    say(f"judged on {rest:,} of {counted(num_all, 'conversation')}: {why}")
    judged = {"num_conversations": rest, "num_in_file": num_all, "without": part.as_record()}
    responses = pick_items(traffic.responses, sorted(kept))
    return replace(traffic, responses=responses, part=judged)


def _keep_only(traffic: Traffic, kept: Sequence[int], noun: str, why: str) -> Traffic:
    """Return the traffic with the responses at these places; the number of the others is shown."""
    num_left_out = len(traffic.responses) - len(kept)
    if num_left_out == 0:
        return traffic
    say(f"left out: {counted(num_left_out, noun)} {why}")
    reading = traffic.reading
    if reading is not None:
        reading = reading.without(num_left_out, f"{noun}s {why}")
    return replace(traffic, responses=pick_items(traffic.responses, kept), reading=reading)
