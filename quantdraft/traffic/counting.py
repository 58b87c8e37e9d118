"""Reads what a file of traffic, prompts or lengths holds, line by line, without any model."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quantdraft.errors import TrafficError
from quantdraft.traffic.contents import TRAITS, Contents, Kind, Lengths, Unit, load_points
from quantdraft.traffic.doubts import warnings_of
from quantdraft.traffic.formats.exchange import Exchange, UnusableLineError
from quantdraft.traffic.formats.known import Reader
from quantdraft.traffic.formats.server_logs import server_log_refusal
from quantdraft.traffic.formats.turns import REASONING
from quantdraft.traffic.jsonl import located_entries
from quantdraft.traffic.ledger import Reading, Tally, left_out_of
from quantdraft.traffic.prompts import Prompt, encode_prompt, read_prompt_file
from quantdraft.traffic.responses import (
    NO_ANSWER,
    UNANSWERED,
    ReadSettings,
    Response,
    answer_places,
    responses_of,
)
from quantdraft.traffic.traffic import ASKABLE, require_whole

UNIT_OF_TEXT: Unit = "characters"  # where nothing makes tokens of it


class Item(NamedTuple):
    """One prompt with its answer, or alone, as it is counted."""

    conversation: str
    domain: str
    traits: Mapping[str, str]
    unit: Unit
    prompt: int
    response: int | None
    content: int | None  # a hash of prompt and answer; None: only lengths are known


def read_contents(
    path: Path, tokenizer: Any = None, settings: ReadSettings | None = None
) -> Contents:
    """Read a file of any known format, line by line, and count what is in it.

    tokenizer: of the target or a draft; what it cannot write is left out, as `evaluate` does
    Raises TrafficError where nothing can be read.
    """
    settings = settings or ReadSettings()
    tally, logs = Tally(), Reader(settings.format_name, settings.requests)
    logs.prepare(path)
    found, digest, header, num_objects = _Counted(), hashlib.sha256(), dict[str, Any](), 0
    for at in located_entries(path, digest, tally.leave_out_line):
        if "quantdraft_traffic" in at.entry and not header and not tally.num_lines:
            header = at.entry
        elif not logs.stands_for_another(at.entry):
            num_objects += 1
            for item in _items(path, logs, at.place, at.entry, tokenizer, settings, tally):
                found.add(item)
    require_whole(path, header, num_objects, tally)
    if not found.num_items:
        reasons = {each.reason for each in left_out_of(tally.skipped)}
        if not reasons or not reasons <= ASKABLE:
            if not header and (refusal := server_log_refusal(path)):
                raise TrafficError(refusal)
            first = tally.skipped[0] if tally.skipped else "it is empty"
            raise TrafficError(
                f"'{path}' holds nothing that can be read. The first reason: {first}."
            )
        asked = read_prompt_file(path, settings)
        for prompt in asked.prompts:
            found.add(_asked(prompt, tokenizer))
        return found.contents(path, "prompts", asked.reading, digest.hexdigest())
    kind: Kind = "lengths" if found.num_without_text == found.num_items else "traffic"
    reading = tally.reading(_doubts(tally, tokenizer, settings) if kind == "traffic" else ())
    return found.contents(path, kind, reading, digest.hexdigest(), header)


def _doubts(tally: Tally, tokenizer: Any, settings: ReadSettings) -> Iterator[str]:
    temperatures = {dict(each).get("temperature") for each in tally.samplings}
    return warnings_of(tally, tokenizer, settings, is_mixed=len(temperatures) > 1)


class _Counted:
    """Counts items one by one; their texts are not kept."""

    def __init__(self) -> None:
        self.num_items = self.num_repeats = self.num_without_text = 0
        self.conversations = Counter[str]()
        self.counts = {name: Counter[str]() for name in ("domain", *TRAITS)}
        self.lengths: dict[tuple[str, Unit], list[int]] = {}
        self.seen: set[int] = set()

    def add(self, item: Item) -> None:
        """Count one item."""
        self.num_items += 1
        self.num_without_text += item.content is None
        self.num_repeats += item.content in self.seen
        if item.content is not None:
            self.seen.add(item.content)
        self.conversations[item.conversation] += 1
        self.counts["domain"][item.domain] += 1
        for name in TRAITS:
            if name in item.traits:
                self.counts[name][item.traits[name]] += 1
        for name, size in (("prompt", item.prompt), ("response", item.response)):
            if size is not None:
                self.lengths.setdefault((name, item.unit), []).append(size)

    def contents(
        self,
        path: Path,
        kind: Kind,
        reading: Reading,
        sha256: str,
        header: dict[str, Any] | None = None,
    ) -> Contents:
        """Return what was counted."""
        lengths: dict[str, list[Lengths]] = {}
        for (name, unit), values in self.lengths.items():
            lengths.setdefault(name, []).append(Lengths(unit, np.array(values, np.int64)))
        in_tokens = [self.lengths.get((name, "tokens"), []) for name in ("prompt", "response")]
        is_whole = len(in_tokens[0]) == len(in_tokens[1])
        return Contents(
            path=path,
            kind=kind,
            reading=reading,
            sha256=sha256,
            num_items=self.num_items,
            num_repeats=self.num_repeats,
            header=header or {},
            conversations=self.conversations,
            counts={name: each for name, each in self.counts.items() if each},
            lengths=lengths,
            load=load_points(*(np.array(v, np.int64) for v in in_tokens)) if is_whole else (),
        )


def _items(
    path: Path,
    logs: Reader,
    place: str,
    entry: dict[str, Any],
    tokenizer: Any,
    settings: ReadSettings,
    tally: Tally,
) -> Iterator[Item]:
    """Yield the items of one object of the file; the tally counts its lines."""
    for kind, exchanges in tally.read(logs, place, entry):
        is_used = False
        for exchange in exchanges:
            for found in _of_exchange(f"{path}:{place}", place, exchange, tokenizer, settings):
                if isinstance(found, Item):
                    is_used = True
                    yield found
                else:
                    tally.leave_out(place, found)
        if is_used:
            tally.use(kind.title, exchanges[0])


def _of_exchange(
    where: str, place: str, exchange: Exchange, tokenizer: Any, settings: ReadSettings
) -> Iterator[Item | UnusableLineError]:
    if exchange.lengths is not None:
        name = exchange.conversation or exchange.name or place
        domain = exchange.domain or "default"
        yield Item(name, domain, exchange.traits, "tokens", *exchange.lengths, content=None)
    elif tokenizer is None and exchange.response_token_ids is None:
        yield from _texts(place, exchange, settings)
    else:
        found = responses_of(where, place, exchange, tokenizer, settings)
        yield from (_of_response(r) if isinstance(r, Response) else r for r in found)


def _of_response(response: Response) -> Item:
    both = response.prompt_token_ids, response.response_token_ids
    return Item(
        response.conversation or response.prompt_id,
        response.domain,
        dict(response.traits),
        "tokens",
        len(both[0]),
        len(both[1]),
        hash(both),
    )


def _texts(
    place: str, exchange: Exchange, settings: ReadSettings
) -> Iterator[Item | UnusableLineError]:
    """Yield prompts with answers by their characters, where nothing makes tokens of them."""
    name = exchange.conversation or exchange.name or place
    domain, unit = exchange.domain or "default", UNIT_OF_TEXT
    shared = name, domain, exchange.traits, unit
    if exchange.messages is None:
        if exchange.prompt is None or exchange.response is None:
            yield UnusableLineError(UNANSWERED)
        else:
            content = hash((exchange.prompt, exchange.response))
            yield Item(*shared, len(exchange.prompt), len(exchange.response), content)
        return
    ends = answer_places(exchange, settings.turns)
    if not ends:
        yield UnusableLineError(NO_ANSWER)
    for end in ends:
        asked, answer = exchange.messages[:end], exchange.messages[end]
        if not any(answer.get(key) for key in ("content", "tool_calls", *REASONING)):
            yield UnusableLineError("the answer is empty")
            continue
        content = hash(json.dumps([*asked, answer], sort_keys=True, default=str))
        yield Item(*shared, num_characters(asked), num_characters([answer]), content)


def num_characters(messages: Sequence[Mapping[str, Any]]) -> int:
    """Return the characters of chat turns: what was said, and the calls of tools."""
    calls = (turn["tool_calls"] for turn in messages if turn.get("tool_calls"))
    said = (turn.get("content") for turn in messages)
    return sum(len(text) for text in said if isinstance(text, str)) + sum(
        len(json.dumps(call, default=str)) for call in calls
    )


def _asked(prompt: Prompt, tokenizer: Any) -> Item:
    unit: Unit = "tokens"
    if prompt.token_ids is not None or tokenizer is not None:
        size = len(encode_prompt(prompt, tokenizer))
    else:
        unit = "characters"
        size = num_characters(prompt.messages or ()) + len(prompt.text or "")
    content = hash((prompt.token_ids, prompt.text, json.dumps(prompt.messages, default=str)))
    name = prompt.conversation or prompt.prompt_id
    return Item(name, prompt.domain, {}, unit, size, None, content)
