"""What is served, and to which end: the settings of a run, opened. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.engines.engine import Engine
from quantdraft.engines.measured import MeasuredEngine
from quantdraft.engines.registry import engine_named, measured_engine
from quantdraft.errors import OptionError
from quantdraft.measure.models import Models
from quantdraft.measure.settings import EvaluateSettings
from quantdraft.record import AcceptanceRule
from quantdraft.traffic.traffic import Sampling, Traffic


@dataclass(frozen=True, slots=True)
class Serve:
    """What is served, and to which end: the settings of the run, opened."""

    settings: EvaluateSettings
    models: Models
    traffic: Traffic
    rule: AcceptanceRule
    device: torch.device
    dtype: torch.dtype  # of replay, where the servers do not tell theirs
    run_dir: Path
    num_speculative_tokens: int

    @property
    def engine(self) -> Engine:
        """The engine that serves."""
        return engine_named(self.settings.serving.engine)

    @property
    def measured(self) -> MeasuredEngine:
        """How it is served and counted."""
        return measured_engine(self.settings.serving.engine)

    @property
    def title(self) -> str:
        """The engine's name in sentences."""
        return self.measured.title

    @property
    def sampling(self) -> Sampling:
        """The traffic's sampling; greedy for a log that does not say."""
        return self.traffic.sampling or Sampling()

    @property
    def target(self) -> Checkpoint:
        """The target, without which nothing is served."""
        if self.models.target is None:
            engine = self.settings.serving.engine
            raise OptionError(f"--engine {engine} needs --target: it is what the engine serves.")
        return self.models.target

    def checkpoint(self, arm: str) -> Checkpoint | None:
        """Return the draft of an arm; None for the target alone."""
        if arm == "autoregressive":
            return None
        return self.models.candidate if arm == "candidate" else self.models.baseline
