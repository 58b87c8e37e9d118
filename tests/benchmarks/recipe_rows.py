"""Rows of the table of recipes: plain data, no torch. A number that is unknown is None.

Every part is measured in a process of its own and kept as JSON; `recipes_table` puts them together
and `recipes_page` shows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quantdraft.record import Interval

K = 4  # num_speculative_tokens, of replay and of vLLM
CONTEXT = 512  # tokens in the cache where keys and values are weighed: the pair's longest
ENGINES = ("native", "transformers", "vllm", "llamacpp")
GGUF = "gguf-"  # begins the name of llama.cpp's rows, which are no recipes; then the type
GGUF_TYPES = ("q8_0", "q4_0")

Level = Literal["loads", "refuses", "not tried"]


@dataclass(frozen=True, slots=True)
class Made:
    """One checkpoint: what making it took, what it weighs, how far it is from the draft."""

    apply_seconds: float  # `apply`, its proof and the import of its back end included
    cpu_seconds: float  # of the same, over all threads: a busy machine changes it less
    peak_bytes: int  # largest resident set of the process, until `apply` returned
    start_bytes: int | None  # of which before `apply` began: Python and torch
    disk_bytes: int  # the files with weights
    step_bytes: int  # one draft step over an empty cache, by the ledger
    context_step_bytes: int  # the same over CONTEXT tokens
    logit_error: float | None  # logits after reload, to the full-precision draft's
    reload_error: float | None  # the same logits, to those of the stored integers and scales
    baseline_rate: Interval  # acceptance rates at K, by replay
    rate: Interval
    loss: Interval  # baseline minus candidate: positive = worse
    num_prompts: int
    num_tokens: int  # in rounds


@dataclass(frozen=True, slots=True)
class Tried:
    """What one engine did with one checkpoint."""

    engine: str
    level: Level
    detail: str  # what it computed with, or in its own words why not
    logit_distance: float | None = None  # its logits, to those of the replayed model
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Counted:
    """vLLM's rounds beside replay's of the same texts, one number a prompt."""

    dtype: str
    engine: tuple[int, ...]
    replay: tuple[float, ...]
    is_exact: bool  # float32 and no rounded activations: the two must be equal
    is_same_text: tuple[bool, ...]  # the served text is the target's own, prompt by prompt

    @property
    def agrees(self) -> bool:
        """Equal to the round, for every prompt."""
        return list(self.engine) == [round(n) for n in self.replay]


@dataclass(frozen=True, slots=True)
class Served:
    """What became of one checkpoint in vLLM's server; no counters where it did not come up."""

    tried: Tried
    counted: Counted | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """One recipe: every part that could be measured here, and why the others could not."""

    name: str
    summary: str
    backend: str
    expected: dict[str, str]  # engine -> what `quantdraft recipes` says of it
    kernels: dict[str, tuple[str, ...]]  # device type -> kernels that compute in the format
    made: Made | None
    tried: tuple[Tried, ...]
    counted: Counted | None = None
    problem: str | None = None  # why there is no checkpoint

    def engine(self, name: str) -> Tried:
        """What an engine did; one that was never asked was not tried."""
        reason = "no checkpoint" if self.made is None else "it was not asked"
        return next((t for t in self.tried if t.engine == name), Tried(name, "not tried", reason))

    def surprises(self) -> list[str]:
        """Where an engine did otherwise than `quantdraft recipes` says it does."""
        found = []
        for engine, level in self.expected.items():
            tried = self.engine(engine)
            if (level, tried.level) in {("yes", "refuses"), ("no", "loads"), ("unknown", "loads")}:
                said = "does not know it" if level == "unknown" else f"says {level!r}"
                did = f"{tried.level}: {tried.detail}"
                found.append(f"{self.name}: {engine} {did} (`quantdraft recipes` {said})")
        return found
