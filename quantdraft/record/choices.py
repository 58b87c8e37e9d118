"""The values of settings that are names, as types. The command line reads them at its start."""

from __future__ import annotations

from typing import Literal

# How the steps of a model run; as a choice also "auto": the one that a trial finds fastest.
Mode = Literal["eager", "fused", "compiled", "graph"]
ModeChoice = Literal["auto", Mode]
DtypeChoice = Literal["auto", "float32", "bfloat16", "float16"]
ExecutorChoice = Literal["local", "ray"]  # who does the jobs of a sweep
