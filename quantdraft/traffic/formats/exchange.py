"""What every format is read into: one request or conversation, and what its log says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

PENALTIES = {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1}
MASKS = (
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"),
    *("json_schema", "regex", "ebnf"),
)
FREE_TEXT = ("text", None)  # types of a response_format that constrain nothing


class UnusableLineError(Exception):
    """A line that is left out and counted. Its message is the reason."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request or conversation of a log: chat turns, or a text, or token ids; one of the three.

    Token ids and log-probabilities are as the log has them; who uses them checks them.
    """

    name: str | None = None  # its id in the log
    messages: tuple[dict[str, Any], ...] | None = None  # with the answers that the log has
    prompt: str | None = None
    response: str | None = None  # the answer to `prompt`
    prompt_token_ids: Any = None
    response_token_ids: Any = None
    logprobs: Any = None
    tools: tuple[Any, ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)  # of the request, named as vLLM's
    domain: str | None = None
    conversation: str | None = None  # what its lines are resampled with
    model: str | None = None
    finish_reason: str | None = None
    lengths: tuple[int, int] | None = None  # tokens of prompt and response, of a log without text
    arrival_s: float | None = None  # when its request came, from any start; of such a log
    has_one_answer: bool = False  # a request with its reply: earlier turns were its input
    is_plain: bool = False  # a lone user's turn, which stays a text where there is no chat template
    asks_first_answer: bool = False  # as a prompt, a conversation is asked up to its first answer
    num_more_turns: int = 0  # of the user, which need the answers to those before

    def __post_init__(self) -> None:
        """Take names as texts: a log may have anything in their places."""
        for field_name in ("name", "domain", "conversation", "model", "finish_reason"):
            value = getattr(self, field_name)
            is_name = isinstance(value, str) or type(value) is int
            object.__setattr__(self, field_name, str(value) if is_name and value != "" else None)

    @property
    def traits(self) -> dict[str, str]:
        """What its tokens can be parted by, beside the domain; only what is stated or unusual."""
        decoding = decoding_of(self.parameters)
        found = {
            "model": self.model,
            "finish reason": self.finish_reason,
            "tools": "with tools" if self.uses_tools else None,
            "decoding": None if decoding == "plain" else decoding,
        }
        return {name: value for name, value in found.items() if value}

    @property
    def uses_tools(self) -> bool:
        """True where tools were offered, or called in some turn."""
        calls = (turn.get("tool_calls") or turn["role"] == "tool" for turn in self.messages or ())
        return bool(self.tools) or any(calls)


class Format(NamedTuple):
    """How one format is recognised and read."""

    name: str  # for --format
    title: str  # "OpenAI Batch output"
    recognises: Callable[[Mapping[str, Any]], bool]
    # One object of the file -> its exchanges; UnusableLineError where it is left out.
    read: Callable[[Mapping[str, Any]], list[Exchange]]
    # An object that holds several: a session, an export. Each part is a line of its own.
    parts: Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]] = lambda entry: (entry,)


def decoding_of(parameters: Mapping[str, Any]) -> str:
    """Return what changed the target's distribution beside temperature, top-p and top-k."""
    found = []
    if any(parameters.get(name, free) not in (free, None) for name, free in PENALTIES.items()):
        found.append("penalties")
    if parameters.get("logit_bias"):
        found.append("logit bias")
    wanted = parameters.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, Mapping) else wanted
    if kind not in FREE_TEXT or any(parameters.get(name) for name in MASKS):
        found.append("grammar")
    if parameters.get("min_tokens"):
        found.append("least length")
    return " and ".join(found) or "plain"
