"""A chat template that loops, or builds gigabytes, is stopped; an ordinary one pays nothing."""

from __future__ import annotations

import resource
import signal
import threading
import time
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quantdraft.errors import TrafficError
from quantdraft.traffic import templates
from quantdraft.traffic.templates import chat_text

CHAT = ({"role": "user", "content": "hello"},)
LOOP = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)


class Templated:
    """A tokenizer with a template alone, rendered as transformers does it."""

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def apply_chat_template(self, messages: Any, **_: object) -> str:
        """Render the turns."""
        made = ImmutableSandboxedEnvironment().from_string(self.chat_template)
        return made.render(messages=messages)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_TEMPLATE_SECONDS", 0.1)


@pytest.mark.parametrize("template", [LOOP, "{{ 10 ** (10 ** 9) }}", "{% set x = 7 ** 99999999 %}"])
def test_a_template_that_loops_is_stopped(template: str) -> None:
    before, limits = signal.getsignal(signal.SIGPROF), resource.getrlimit(resource.RLIMIT_AS)
    began = time.process_time()
    with pytest.raises(TrafficError, match=r"more than 0\.1 seconds for one chat: it was stopped"):
        chat_text(CHAT, Templated(template))
    assert time.process_time() - began < 5
    assert signal.getsignal(signal.SIGPROF) == before
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


@pytest.mark.parametrize(
    "template", ["{{ 'a' * 10 ** 12 }}", "{{ '%99999999999d'|format(1) }}", "{{ [0] * 10 ** 12 }}"]
)
def test_a_template_that_builds_gigabytes_is_stopped(template: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(TrafficError, match="larger than any model reads"):
        chat_text(CHAT, Templated(template))
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


def test_a_text_beyond_every_context_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_CHAT_CHARACTERS", 100)
    with pytest.raises(TrafficError, match="larger than any model reads"):
        chat_text(CHAT, Templated("{{ 'a' * 101 }}"))


def test_an_ordinary_template_is_rendered_in_every_thread() -> None:
    template = Templated("{{ messages[0].content }}!")
    assert chat_text(CHAT, template) == "hello!"
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(chat_text(CHAT, template)))
    thread.start()
    thread.join()
    assert found == ["hello!"]
