"""The engine in which speed is measured, and what the user tells it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantdraft.common.files import coerce_paths

# What only an engine with servers reads, as the command line spells it.
OPTIONS = {
    "path": "--engine-path",
    "urls": "--engine-url",
    "spec": "--engine-spec",
    "args": "--engine-args",
    "num_prompts": "--engine-prompts",
    "k": "--engine-k",
    "num_loads": "--engine-loads",
}


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """The engine that serves the models; "native" is this process, which serves nothing."""

    engine: str = "native"
    path: Path | None = None  # vLLM's Python, or llama.cpp's directory; None: the installed one
    urls: tuple[str, ...] = ()  # servers that the user runs: ARM=URL, or the candidate's URL
    spec: tuple[str, ...] = ()  # KEY=VALUE of the engine's speculative settings
    args: tuple[str, ...] = ()  # further arguments of the server
    num_prompts: int | None = None  # None: all of the traffic
    k: int | None = None  # the one k that is served; None: the nearest to 4 of those replayed
    num_loads: int | None = None  # starts of each arm's server; None: 2

    def __post_init__(self) -> None:
        coerce_paths(self)

    @property
    def is_native(self) -> bool:
        """True where speed is measured in this process."""
        return self.engine == "native"

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings, one sentence each."""
        for name in ("num_prompts", "k", "num_loads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{OPTIONS[name]} {value} must be at least 1."
        if self.is_native:
            given = [option for name, option in OPTIONS.items() if getattr(self, name)]
            if given:
                verb = "needs" if len(given) == 1 else "need"
                yield f"{', '.join(given)} {verb} --engine vllm or llamacpp."
            return
        if self.urls and (self.path or self.spec or self.args):
            yield "--engine-url names servers that run: they have their own settings."
        if self.urls and self.num_loads:
            yield "--engine-loads: servers that run are not started again. Leave it out."
