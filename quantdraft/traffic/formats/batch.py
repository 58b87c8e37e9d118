"""OpenAI Batch: its input, its output, and both joined by `custom_id`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantdraft.traffic.formats.exchange import Exchange, Format, UnusableLineError
from quantdraft.traffic.formats.requests import of_line, read_pair, read_request, session_of

NOT_JOINED = "its request is not known: give the batch's input file with --requests"


class Batch:
    """Reads lines of a batch; the output's lines are joined with requests that it was told."""

    def __init__(self) -> None:
        self.requests: dict[str, Any] = {}  # custom_id -> body

    def learn(self, entry: Mapping[str, Any]) -> bool:
        """Remember a line's request, and return whether it is one."""
        if not is_input(entry):
            return False
        self.requests[str(entry["custom_id"])] = entry["body"]
        return True

    @property
    def input(self) -> Format:
        """The format of requests."""
        return Format("batch-input", "OpenAI Batch input", is_input, self._read_input)

    @property
    def output(self) -> Format:
        """The format of replies."""
        return Format("batch", "OpenAI Batch output", is_output, self._read_output)

    def _read_input(self, entry: Mapping[str, Any]) -> list[Exchange]:
        line = _line(entry, entry["body"])
        return [Exchange(**line, **read_request(entry["body"]), has_one_answer=True)]

    def _read_output(self, entry: Mapping[str, Any]) -> list[Exchange]:
        response = entry.get("response")
        if entry.get("error") or not isinstance(response, Mapping):
            raise UnusableLineError("its request failed")
        status = response.get("status_code", 200)
        if isinstance(status, int) and status >= 300:
            raise UnusableLineError(f"its request failed with status {status}")
        own = entry.get("body") or entry.get("request")  # some keep both halves in one line
        request = own if isinstance(own, Mapping) else self.requests.get(str(entry["custom_id"]))
        line = _line(entry, request)
        try:
            return read_pair(request, response.get("body"), line)
        except UnusableLineError as error:
            if request is None and "without its prompt" in str(error):
                raise UnusableLineError(NOT_JOINED) from None
            raise


def is_input(entry: Mapping[str, Any]) -> bool:
    """Return whether a line is a request of a batch."""
    return "custom_id" in entry and isinstance(entry.get("body"), Mapping)


def is_output(entry: Mapping[str, Any]) -> bool:
    """Return whether a line is a reply of a batch."""
    return "custom_id" in entry and ("response" in entry or "error" in entry)


def _line(entry: Mapping[str, Any], body: Any) -> dict[str, Any]:
    line = of_line(entry)
    model = body.get("model") if isinstance(body, Mapping) else None
    return {
        **line,
        "name": str(entry["custom_id"]),
        "conversation": line["conversation"] or session_of(body),
        "model": line["model"] or (model if isinstance(model, str) else None),
    }
