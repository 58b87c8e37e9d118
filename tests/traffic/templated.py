"""A tokenizer of one id a character with a chat template that jinja runs as transformers does."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Prints what templates print: tools, calls, reasoning, and a switch for thinking.
TEMPLATE = """{%- if tools %}<|im_start|>system
TOOLS {{ tools | tojson }}<|im_end|>
{% endif %}{%- for m in messages %}<|im_start|>{{ m.role }}

{%- if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}
{{ m.content }}{%- for c in (m.tool_calls or []) %}
CALL {{ c.function.name }}({{ c.function.arguments }}){% endfor %}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""
PLAIN = """{%- for m in messages %}[{{ m.role }}]{{ m.content }}
{% endfor %}{%- if add_generation_prompt %}[assistant]{% endif %}"""


class Templated:
    """One id a character; `template` None: the tokenizer has none."""

    def __init__(self, template: str | None = TEMPLATE) -> None:
        self.chat_template = template

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [ord(c) for c in text]}

    def decode(self, ids: Any, **_: object) -> str:
        return "".join(chr(i) for i in ids if i != 1)

    def apply_chat_template(
        self, messages: list[dict[str, Any]], *, tokenize: bool, **settings: Any
    ) -> str:
        assert not tokenize
        return compiled(self.chat_template or "").render(messages=messages, **settings)


@cache  # as transformers keeps it: to compile a template takes far longer than to render it
def compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(template)


def refuse(message: str) -> None:
    raise ValueError(message)
