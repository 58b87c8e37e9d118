"""The HTTP client of the servers that engines run. What it receives is read without trust.

A reply is limited in size, an error becomes one line, and a password in the URL stands in no
message and in no record.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

from quantdraft.common.documents import parse_json
from quantdraft.errors import EngineError

REQUEST_SECONDS = 600.0
MAX_REPLY_BYTES = 1 << 26
JSON_HEADER = {"Content-Type": "application/json"}
USER_IN_URL = re.compile(r"(?<=:)//[^/\s'\"]*@")


class HttpClient:
    """One server, asked past any proxy. Every method raises EngineError where it does not answer.

    `url` is without user and password.
    """

    def __init__(self, url: str, timeout: float = REQUEST_SECONDS) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EngineError(
                f"'{without_password(url)}' is no address of a server. Write http://host:port."
            )
        self.url, self.timeout, self._parts = without_password(url).rstrip("/"), timeout, parts

    def get(self, path: str) -> str:
        """Return the text of a path."""
        with self._reply("GET", path, None, "does not answer") as reply:
            return reply.read(MAX_REPLY_BYTES).decode("utf-8", "replace")

    def get_value(self, path: str, *keys: str | int) -> Any:
        """Return a value inside the JSON of a path."""
        return self._value(path, self.get(path), *keys)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON object that answers a JSON body."""
        with self._reply("POST", path, body, "does not answer") as reply:
            text = reply.read(MAX_REPLY_BYTES).decode("utf-8", "replace")
        found = self._value(path, text)
        if not isinstance(found, dict):
            raise EngineError(f"{self.url}{path} answered no JSON object: {text[:100]!r}.")
        return found

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the JSON of every event of a server-sent stream."""
        with self._reply("POST", path, body, "broke off") as reply:
            while line := reply.readline(MAX_REPLY_BYTES):
                event = parse_event(line)
                if event is not None:
                    yield event

    def _value(self, path: str, text: str, *keys: str | int) -> Any:
        try:
            value = parse_json(text)
            for key in keys:
                value = value[key]
            return value
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise EngineError(f"{self.url}{path} is not what it should be: {error!r}.") from error

    @contextlib.contextmanager
    def _reply(
        self, method: str, path: str, body: dict[str, Any] | None, failure: str
    ) -> Iterator[http.client.HTTPResponse]:
        """Yield a reply whose status is 200. `failure` says what a lost connection means."""
        connection = self._connection()
        data = None if body is None else json.dumps(body)
        try:
            headers = self._credentials() | ({} if data is None else JSON_HEADER)
            connection.request(method, self._parts.path.rstrip("/") + path, data, headers)
            reply = connection.getresponse()
            if reply.status != 200:
                text = reply.read(MAX_REPLY_BYTES).decode("utf-8", "replace")
                message = error_message(text)
                raise EngineError(f"{self.url}{path} answered {reply.status}: {message}")
            yield reply
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"{self.url} {failure}: {error or type(error).__name__}.") from error
        finally:
            connection.close()

    def _credentials(self) -> dict[str, str]:
        """Return the header that user:password@ in the URL asks for."""
        if self._parts.username is None:
            return {}
        given = (self._parts.username, self._parts.password or "")
        pair = ":".join(urllib.parse.unquote(part) for part in given)
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}

    def _connection(self) -> http.client.HTTPConnection:
        is_secure = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if is_secure else http.client.HTTPConnection
        assert self._parts.hostname is not None
        return kind(self._parts.hostname, self._parts.port, timeout=self.timeout)


def without_password(text: str) -> str:
    """Return a URL, or a command line with URLs, as it may be shown and recorded."""
    return USER_IN_URL.sub("//", text)


def parse_event(line: bytes) -> dict[str, Any] | None:
    """Return the JSON of a line of a server-sent stream; None for its other lines.

    Raises EngineError for what is no JSON object, and for an error that the server sends.
    """
    data = line.removeprefix(b"data: ").strip()
    if not line.startswith(b"data: ") or data == b"[DONE]":
        return None
    try:
        event = parse_json(data)
    except ValueError as error:
        raise EngineError(f"the server sent what is not JSON: {error}.") from error
    if not isinstance(event, dict):
        raise EngineError(f"the server sent {data[:60]!r}, which is no event of a stream.")
    if "error" in event:
        raise EngineError(f"the server stopped: {error_message(data.decode())}")
    return event


def token_ids(ids: Any) -> list[int]:
    """Return the token ids that a server sent. Raises EngineError for what are none."""
    if not isinstance(ids, list) or any(type(token) is not int or token < 0 for token in ids):
        raise EngineError(f"the server sent {str(ids)[:60]!r} for token ids.")
    return ids


def error_message(text: str) -> str:
    """Return the message in a server's error, or the beginning of its text, in one line."""
    with contextlib.suppress(ValueError, AttributeError):
        plain = parse_json(text)
        found = plain.get("error", plain)
        text = str(found.get("message", found)) if isinstance(found, dict) else str(found)
    return " ".join(text.split())[:300] or "nothing"
