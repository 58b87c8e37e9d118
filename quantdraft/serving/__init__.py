"""How each engine is told of a draft: launch line, checks, notes. One file an engine."""

from __future__ import annotations

from types import ModuleType

from quantdraft.errors import OptionError
from quantdraft.serving import transformers, vllm

# Each engine has: LAUNCH_FILE, NOTES, launch(), launch_text(), check().
ENGINES: dict[str, ModuleType] = {"vllm": vllm, "transformers": transformers}


def engine_named(name: str) -> ModuleType:
    """The serving module of an engine. Raises OptionError for one that is not supported."""
    if name not in ENGINES:
        raise OptionError(f"--engine {name!r} is unknown. Use {', '.join(ENGINES)}.")
    return ENGINES[name]
