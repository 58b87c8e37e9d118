"""How each engine is told of a draft: launch line, checks, notes. One file an engine."""

from __future__ import annotations

from types import ModuleType

from quantdraft.engines import sglang, tensorrt_llm, transformers
from quantdraft.engines.findings import Pair
from quantdraft.engines.llamacpp import launch as llamacpp
from quantdraft.engines.vllm import launch as vllm
from quantdraft.errors import OptionError, nearest

# Each engine has: LAUNCH_FILE, NOTES, launch(), launch_text(), check(); some have extra_files().
ENGINES: dict[str, ModuleType] = {
    "vllm": vllm,
    "sglang": sglang,
    "transformers": transformers,
    "tensorrt-llm": tensorrt_llm,
    "llamacpp": llamacpp,
}
ALIASES = {"llama.cpp": "llamacpp", "tensorrt_llm": "tensorrt-llm", "trtllm": "tensorrt-llm"}


def engine_name(name: str) -> str:
    """The name in `ENGINES`. Raises OptionError for an engine that is not supported."""
    found = ALIASES.get(name.lower(), name.lower())
    if found not in ENGINES:
        hint = nearest(name, ENGINES)
        raise OptionError(f"--engine {name!r} is unknown.{hint} There are: {', '.join(ENGINES)}.")
    return found


def engine_named(name: str) -> ModuleType:
    """The serving module of an engine. Raises OptionError for one that is not supported."""
    return ENGINES[engine_name(name)]


def extra_files(engine: object, pair: Pair) -> dict[str, str]:
    """What the launch line names besides the draft: contents by file name, mostly nothing."""
    if not hasattr(engine, "extra_files"):
        return {}
    files: dict[str, str] = engine.extra_files(pair)
    return files
