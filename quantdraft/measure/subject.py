"""What is measured in a run: opened models on a device, and traffic. Plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.claims import claims_but_not_quantized
from quantdraft.checkpoints.tensors.devices import device_key
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.measure.models import Models
from quantdraft.record import AcceptanceRule
from quantdraft.record.provenance import model_identity
from quantdraft.traffic.traffic import Sampling, Traffic


@dataclass(frozen=True, slots=True)
class Subject:
    """The models and the traffic of a run, and the directory that keeps its finished parts."""

    models: Models
    traffic: Traffic
    rule: AcceptanceRule
    device: torch.device
    dtype: torch.dtype  # of replay and of the live loop
    run_dir: Path

    @property
    def sampling(self) -> Sampling:
        """As the traffic was sampled; greedy where it does not say."""
        return self.traffic.sampling or Sampling()

    def draft(self, arm: str) -> Checkpoint:
        """Return the candidate, or the baseline."""
        return self.models.candidate if arm == "candidate" else self.models.baseline

    def load(self, checkpoint: Checkpoint) -> Any:
        """Load a model of the transformers library.

        A checkpoint with a false claim is read as what it holds; the verdict has the alarm.
        """
        is_false = claims_but_not_quantized(checkpoint) is not None
        return load_model(checkpoint.path, self.dtype, self.device, ignore_quantization=is_false)

    def draft_facts(self, *arms: str) -> dict[str, Any]:
        """Return what says which drafts are measured, and on which device, as JSON values."""
        weights = {arm: model_identity(self.draft(arm))["sha256"] for arm in arms}
        return weights | {"device": device_key(self.device)}

    def target_facts(self) -> dict[str, Any]:
        """Return what says which target is measured, as JSON values."""
        target = self.models.target
        return {"target": None if target is None else model_identity(target)["sha256"]}

    def traffic_facts(self) -> dict[str, Any]:
        """Return what says which texts are replayed, and by which rule, as JSON values."""
        sampling = self.traffic.sampling
        return {
            "traffic": self.traffic.sha256,
            "rule": self.rule,
            "sampling": None if sampling is None else asdict(sampling),
            "dtype": str(self.dtype),
            **({"read_with": self.traffic.read_with} if self.traffic.read_with else {}),
            **({"part": self.traffic.part} if self.traffic.part else {}),
        }
