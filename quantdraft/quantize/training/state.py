"""What a training has reached, in one file: floats, the optimizer's moments, and the position."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from quantdraft.common.resume import kept_when_refused

STATE_FILE, BEST_FILE = "state.safetensors", "best.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Look:
    """What the selection part says of the draft at one moment."""

    share: float  # of the budget
    seconds: float  # of training, looks included
    num_steps: int
    num_tokens: int
    loss: float | None  # a running mean since the last look; None before the first update
    mean_acceptance_length: float
    acceptance_rate: float


@dataclass(slots=True)
class Position:
    """How far a training is."""

    num_examples: int = 0  # that were trained on, repeats included
    num_steps: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    looks: list[Look] = field(default_factory=list)
    loss_sum: float = 0.0  # since the last look
    loss_steps: int = 0

    @property
    def best(self) -> Look:
        """The look at the best draft so far; the earliest of equals."""
        return max(self.looks, key=lambda look: look.mean_acceptance_length)

    @property
    def num_since_best(self) -> int:
        """How many looks came after the best one."""
        return len(self.looks) - 1 - self.looks.index(self.best)


def save_state(
    directory: Path,
    floats: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    position: Position,
    key: str,
) -> None:
    """Write the state, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in floats.items():
        tensors[f"float.{name}"] = parameter.detach()
        for part in MOMENTS:
            if part in optimizer.state[parameter]:
                tensors[f"{part}.{name}"] = optimizer.state[parameter][part]
    facts = {"key": key, "position": json.dumps(asdict(position))}
    write_tensors(directory / STATE_FILE, tensors, facts)


def read_position(path: Path, key: str) -> Position | None:
    """Return where a training of this key stopped; None where there is none, or it is another's."""
    facts = _facts(path)
    if facts is None or facts.get("key") != key:
        return None
    plain = json.loads(facts["position"])
    return Position(**plain | {"looks": [Look(**look) for look in plain["looks"]]})


def state_key(path: Path) -> str | None:
    """Return what training a state is of; None where there is no state."""
    facts = _facts(path)
    return None if facts is None else facts.get("key")


def _facts(path: Path) -> dict[str, str] | None:
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


@torch.no_grad()
def load_state(
    path: Path,
    floats: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    position: Position,
) -> None:
    """Put a state's numbers into the floats and the optimizer."""
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        for name, parameter in floats.items():
            parameter.copy_(file.get_tensor(f"float.{name}"))
            if f"{MOMENTS[0]}.{name}" in names:
                moments = {p: file.get_tensor(f"{p}.{name}").to(parameter) for p in MOMENTS}
                step = torch.tensor(float(position.num_steps))
                optimizer.state[parameter] = {"step": step, **moments}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors beside the file, and rename: a reader finds the old ones or the new ones."""
    beside = path.with_suffix(".tmp")
    with kept_when_refused(path):
        plain = {name: each.cpu().contiguous() for name, each in tensors.items()}
        save_file(plain, beside, metadata={name: str(each) for name, each in facts.items()})
        os.replace(beside, path)


def read_tensors_of(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a file that `write_tensors` wrote."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
