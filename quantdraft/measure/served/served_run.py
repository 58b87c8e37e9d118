"""What is served, and to which end. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.engines.measured import MeasuredEngine
from quantdraft.engines.registry import measured_engine
from quantdraft.measure.settings import EvaluateSettings
from quantdraft.measure.subject import Subject


@dataclass(frozen=True, slots=True)
class Serve:
    """What is served, and to which end."""

    subject: Subject  # of its traffic every prompt is asked; its dtype: if servers tell none
    settings: EvaluateSettings
    num_speculative_tokens: int

    @property
    def measured(self) -> MeasuredEngine:
        """How the engine is served and counted."""
        return measured_engine(self.settings.serving.engine)

    @property
    def target(self) -> Checkpoint:
        """The target, without which nothing is served."""
        assert self.subject.models.target is not None  # `EvaluateSettings.check` asks for it
        return self.subject.models.target

    def checkpoint(self, arm: str) -> Checkpoint | None:
        """Return the draft of an arm; None for the target alone."""
        return None if arm == "autoregressive" else self.subject.draft(arm)
