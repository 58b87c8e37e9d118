"""Every engine by name. Adding one is a class that inherits `Engine`, and a row here."""

from __future__ import annotations

from quantdraft.engines.engine import Engine
from quantdraft.engines.llamacpp.engine import Llamacpp
from quantdraft.engines.measured import MeasuredEngine
from quantdraft.engines.sglang import Sglang
from quantdraft.engines.tensorrt_llm import TensorRtLlm
from quantdraft.engines.transformers import Transformers
from quantdraft.engines.vllm.engine import Vllm
from quantdraft.errors import OptionError, nearest

ENGINES: dict[str, Engine] = {
    engine.name: engine for engine in (Vllm(), Sglang(), Transformers(), TensorRtLlm(), Llamacpp())
}
ALIASES = {"llama.cpp": "llamacpp", "tensorrt_llm": "tensorrt-llm", "trtllm": "tensorrt-llm"}


def engine_named(name: str) -> Engine:
    """Return the engine of a name or an alias. Raises OptionError for one that is not known."""
    found = ALIASES.get(name.lower(), name.lower())
    if found not in ENGINES:
        hint = nearest(name, ENGINES)
        raise OptionError(f"--engine {name!r} is unknown.{hint} There are: {', '.join(ENGINES)}.")
    return ENGINES[found]


def measured_engine(name: str) -> MeasuredEngine:
    """Return how an engine is served here. Raises OptionError for one that is not measured."""
    measured = engine_named(name).measured
    if measured is None:
        raise OptionError(f"--engine {name} is not measured. Use {', '.join(measured_names())}.")
    return measured


def measured_names() -> list[str]:
    """Return the engines that `evaluate` serves with, by name."""
    return [name for name, engine in ENGINES.items() if engine.measured is not None]
