"""What is uncertain in a log: what replay cannot honour, and what the log does not say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quantdraft.traffic.ledger import Tally
from quantdraft.traffic.responses import ReadSettings
from quantdraft.traffic.templates import has_template, template_mentions


def warnings_of(
    tally: Tally, tokenizer: Any, settings: ReadSettings, is_mixed: bool
) -> Iterator[str]:
    """Yield what is uncertain in a log, one sentence each."""
    for name in ("penalties", "logit bias", "grammar", "least length"):
        count = sum(
            each
            for note, each in tally.notes.items()
            if note.startswith("decoded") and name in note
        )
        if count:
            yield (
                f"{count:,} lines were decoded with {name}, which replay does not apply: the "
                "engine's draft may be changed by it too. They are a part of their own by "
                "'decoding'."
            )
    if is_mixed:
        yield (
            "lines differ in their temperature, or some do not state it: how the log was sampled "
            "is taken as unknown."
        )
    if len(tally.models) > 1:
        yield "the log has answers of several models or adapters: acceptance by model is shown."
    silent = tally.num_chats - tally.tells_thinking
    is_told = "enable_thinking" in settings.template_kwargs
    if silent > 0 and not is_told and template_mentions(tokenizer, "enable_thinking"):
        yield (
            f"the chat template has enable_thinking, and {silent:,} lines do not say what it was: "
            "they are written as the template does by default. Give --chat-template-kwargs "
            "'{\"enable_thinking\": false}' (or true)."
        )
    if tally.notes["with tools"] and tokenizer is not None and not _prints_tools(tokenizer):
        yield "the chat template does not print tools: the engine's prompt has none of them either."


def _prints_tools(tokenizer: Any) -> bool:
    return not has_template(tokenizer) or template_mentions(tokenizer, "tools")
