"""Chats written by the target's chat template: the prompt, and what the target answered to it.

The tokenizer is an argument, of the kind that `transformers` has, with `apply_chat_template`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quantdraft.errors import OptionError, TrafficError
from quantdraft.traffic.bounds import TookTooLong, bounded
from quantdraft.traffic.formats.exchange import UnusableLineError
from quantdraft.traffic.formats.turns import REASONING

MAX_TEMPLATE_SECONDS = 10.0  # of the processor, for one chat; a template takes a millisecond
MAX_TEMPLATE_BYTES = 1 << 30
MAX_CHAT_CHARACTERS = 64 * 2**20
_TOO_LARGE = (
    "the tokenizer's chat template makes a text of one chat that is larger than any model reads: "
    "it was stopped. Read chat_template of the target's directory."
)
# Arguments of transformers itself, which a log must not set.
RESERVED = frozenset(
    {
        *("conversation", "tools", "chat_template", "add_generation_prompt", "tokenize"),
        *("continue_final_message", "padding", "truncation", "max_length", "return_tensors"),
        *("return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "messages"),
    }
)
MARK = "\u2045the answer\u2046"  # no log has it, and no template changes it
UNPRINTED = "the chat template does not print its {}: what the target wrote is not known"


class NoTemplateError(TrafficError):
    """A chat for a tokenizer without a chat template."""


class RefusedChatError(TrafficError):
    """A chat that the template refuses: one line of a log, which is left out."""


def chat_text(
    messages: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    tools: Sequence[Any] = (),
    template_kwargs: Mapping[str, Any] | None = None,
    *,
    opens_answer: bool = True,
) -> str:
    """Write a chat by the tokenizer's template, up to where the assistant begins.

    opens_answer: False writes the chat alone, for one that ends with the answer
    Raises TrafficError when the tokenizer has no chat template, or it refuses these turns.
    """
    if not has_template(tokenizer):
        raise NoTemplateError(
            "the prompts are chats, but the target's tokenizer has no chat template. Give prompts "
            "as 'prompt' text, or put a chat_template.jinja into the target's directory."
        )
    turns, settings = list(messages), dict(template_kwargs or {})
    require_allowed(settings)
    if tools:
        settings["tools"] = list(tools)
    try:
        with bounded(MAX_TEMPLATE_SECONDS, MAX_TEMPLATE_BYTES):
            text = str(
                tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=opens_answer, **settings
                )
            )
    except TookTooLong:
        raise TrafficError(
            f"the tokenizer's chat template needs more than {MAX_TEMPLATE_SECONDS:g} seconds for "
            "one chat: it was stopped. Read chat_template of the target's directory."
        ) from None
    except MemoryError:
        raise TrafficError(_TOO_LARGE) from None
    except Exception as error:  # templates raise many types: jinja2, ValueError, TypeError
        said = " ".join(str(error).split())
        raise RefusedChatError(f"the tokenizer's chat template refuses a chat: {said}") from error
    if len(text) > MAX_CHAT_CHARACTERS:
        raise TrafficError(_TOO_LARGE)
    return text


def has_template(tokenizer: Any) -> bool:
    """Return whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def template_mentions(tokenizer: Any, word: str) -> bool:
    """Return whether the chat template has a word."""
    return word in str(getattr(tokenizer, "chat_template", None) or "")


def require_allowed(template_kwargs: Mapping[str, Any]) -> None:
    """Raise OptionError for template arguments that would change how the template is run."""
    wrong = sorted(RESERVED & set(template_kwargs))
    if wrong:
        raise OptionError(f"the template argument {wrong[0]!r} cannot be set: leave it out.")


def prompt_and_answer(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    tools: Sequence[Any] = (),
    template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[str, str]:
    """Return the prompt, and the text that the target wrote for the last turn.

    A turn of plain text is its own text. Tool calls and reasoning are written as the template
    prints them; UnusableLineError where it does not, since the target wrote them all the same.
    """
    asked, answer = messages[:-1], messages[-1]
    prompt = chat_text(asked, tokenizer, tools, template_kwargs)
    said = answer["content"]
    if set(answer) > {"role", "content"}:
        said = _printed(prompt, messages, tokenizer, tools, template_kwargs)
    elif not said:
        raise UnusableLineError("the answer is empty")
    if prompt.rstrip().endswith("<think>") and "</think>" not in said:
        raise UnusableLineError(
            "the chat template opens a thought, and the log has none: what the target wrote is not "
            "known. Log the reasoning too, or give --chat-template-kwargs that turn it off"
        )
    return prompt, said


def _printed(
    prompt: str,
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    tools: Sequence[Any],
    template_kwargs: Mapping[str, Any] | None,
) -> str:
    """Return what the template prints for the last turn, without how it closes a turn."""
    answer = messages[-1]

    def write(turn: Mapping[str, Any]) -> str:
        turns = (*messages[:-1], turn)
        return chat_text(turns, tokenizer, tools, template_kwargs, opens_answer=False)

    opening, found, closing = write({"role": answer["role"], "content": MARK}).rpartition(MARK)
    whole = write(answer)
    starts = [each.rstrip() for each in (prompt, opening) if whole.startswith(each.rstrip())]
    if not found or not starts or not whole.endswith(closing):
        raise UnusableLineError("the chat template prints its answer apart from its prompt")
    said = whole[len(starts[0]) : len(whole) - len(closing)].lstrip()
    for what, text in _must_be_printed(answer):
        if text.strip() not in said:
            raise UnusableLineError(UNPRINTED.format(what))
    if not said:
        raise UnusableLineError("the answer is empty")
    content = str(answer["content"])
    return content if said.strip() == content.strip() else said


def _must_be_printed(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the texts that the target must have written, with what each is."""
    found = [("content", str(answer["content"]))]
    thought = next((answer[key] for key in REASONING if answer.get(key)), None)
    found += [] if thought is None else [("reasoning", str(thought))]
    calls = answer.get("tool_calls") or ()
    return found + [("tool calls", str(call["function"]["name"])) for call in calls]
