"""The training of a draft: updates, looks at the selection part, and a state to go on from.

Everything but the clock is a function of the inputs: a run that was killed and went on ends with
the same bits as one that was not, on the same device and number of threads. With a budget of
minutes the clock decides where the learning rate stands, so there equal bits cannot be promised.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from quantdraft.quantize.training.examples import Example, ExampleOrder, passes
from quantdraft.quantize.training.losses import DISTANCES, TargetRows, pieces, token_logprobs
from quantdraft.quantize.training.settings import NUM_LOOKS, TrainingSettings
from quantdraft.quantize.training.state import (
    BEST_FILE,
    STATE_FILE,
    Look,
    Position,
    load_state,
    read_position,
    save_state,
    write_tensors,
)
from quantdraft.quantize.training.target_rows import TargetStore

WARM_UP, LAST_RATE = 0.05, 0.05  # shares: of the budget, of the learning rate
MAX_NORM = 1.0  # of all gradients together
SAVE_SECONDS, SAVE_COST = 120.0, 20.0  # between states, and at least so many times what one takes
BETAS = (0.9, 0.95)

# The mean acceptance length and the acceptance rate of a draft on the selection part.
Score = Callable[[Any], tuple[float, float]]
# The weight of every response token, from the probabilities that each is kept.
Weigh = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a draft is trained on, and how it is judged on the way."""

    examples: Sequence[Example]
    targets: TargetStore | None  # None: the loss needs the tokens alone
    score: Score
    weigh: Weigh | None = None  # for losses that weigh tokens
    is_rejection: bool = False  # a proposal is kept with the chance min(1, draft / target)
    temperature: float = 1.0


@dataclass(slots=True)
class Trainer:
    """One training on its way; `train` goes on from the state in `directory`."""

    model: Any  # computes with what is stored, see `train_through`
    floats: Mapping[str, nn.Parameter]
    stored_dtypes: Mapping[str, torch.dtype]
    lessons: Lessons
    settings: TrainingSettings
    directory: Path
    key: str
    pass_tokens: int
    autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    tell: Callable[[Look, Look], None] = lambda first, now: None
    reach: Callable[[float], None] = lambda share: None
    optimizer: torch.optim.AdamW = field(init=False)
    position: Position = field(init=False)
    order: ExampleOrder = field(init=False)

    def __post_init__(self) -> None:
        rate = self.settings.learning_rate
        self.optimizer = torch.optim.AdamW(
            list(self.floats.values()), lr=rate, betas=BETAS, weight_decay=0.0
        )
        self.order = ExampleOrder(self.lessons.examples, self.settings.seed)
        state = self.directory / STATE_FILE
        found = read_position(state, self.key)
        self.position = found or Position()
        if found is not None:
            load_state(state, self.floats, self.optimizer, found)

    def train(self) -> Position:
        """Train to the end of the budget, or until looks find no better draft; the best is kept."""
        started, before = time.monotonic(), self.position.seconds
        saved, save_cost = started, 0.0
        while True:
            self.position.seconds = before + time.monotonic() - started
            share = self.share_done()
            self.reach(min(1.0, share))
            if self._is_look_due(share):
                self._look(min(1.0, share))
                self.position.seconds = before + time.monotonic() - started
                share = self.share_done()
            now = time.monotonic()
            if now - saved > max(SAVE_SECONDS, SAVE_COST * save_cost) or self._is_over(share):
                self.save()
                saved = time.monotonic()
                save_cost = saved - now
            if self._is_over(share):
                return self.position
            self._update(share)

    def save(self) -> None:
        """Write the state, whole or not at all."""
        save_state(self.directory, self.floats, self.optimizer, self.position, self.key)

    def share_done(self) -> float:
        """Return how much of the budget is used up; 1 and more: all."""
        settings = self.settings
        if settings.minutes is not None:
            return self.position.seconds / (60 * settings.minutes)
        assert settings.epochs is not None  # `check` asks for one of the two
        return self.position.num_examples / (settings.epochs * len(self.lessons.examples))

    def _is_over(self, share: float) -> bool:
        is_stale = self.position.num_since_best >= self.settings.patience
        return (share >= 1 and not self._is_look_due(share)) or is_stale

    def _is_look_due(self, share: float) -> bool:
        """Return whether a further tenth of the budget is used up since the last look."""
        if not self.position.looks:
            return True
        last = self.position.looks[-1].share
        return math.floor(min(1.0, share) * NUM_LOOKS) > math.floor(last * NUM_LOOKS)

    def _look(self, share: float) -> None:
        """Replay the selection part; keep the draft if it is the best so far."""
        at = self.position
        length, rate = self.lessons.score(self.model)
        mean = at.loss_sum / at.loss_steps if at.loss_steps else None
        at.loss_sum, at.loss_steps = 0.0, 0
        look = Look(share, at.seconds, at.num_steps, at.num_tokens, mean, length, rate)
        at.looks.append(look)
        if at.best is look:
            stored = {n: p.detach().to(self.stored_dtypes[n]) for n, p in self.floats.items()}
            facts = {"key": self.key, "num_steps": at.num_steps}
            write_tensors(self.directory / BEST_FILE, stored, facts)
        self.tell(at.looks[0], look)

    def _update(self, share: float) -> None:
        """Make one update of the floats: passes over some examples, their gradients summed."""
        at, settings = self.position, self.settings
        chosen = self.order.step_from(at.num_examples, settings.batch_tokens)
        total = sum(float(self._base_weights(self.lessons.examples[i]).sum()) for i in chosen)
        loss = 0.0
        with parametrize.cached():
            for some in passes(self.lessons.examples, chosen, self.pass_tokens):
                part = self._loss(some) / max(total, 1e-6)
                torch.autograd.backward(part)
                loss += float(part.detach())
        nn.utils.clip_grad_norm_(list(self.floats.values()), MAX_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate_at(share)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        at.num_examples += len(chosen)
        at.num_steps += 1
        at.num_tokens += sum(len(self.lessons.examples[i].token_ids) for i in chosen)
        at.loss_sum += loss
        at.loss_steps += 1

    def _loss(self, some: list[int]) -> Tensor:
        """Return the weighted sum of the loss over all places of some examples."""
        examples = [self.lessons.examples[index] for index in some]
        width = max(each.num_rows for each in examples)
        ids = torch.zeros((len(some), width), dtype=torch.long)
        for row, example in zip(ids, examples, strict=True):
            row[: example.num_rows] = torch.tensor(example.token_ids[:-1])
        with self.autocast():
            logits = self.model(input_ids=ids.to(self.model.device), use_cache=False).logits
        parts = [
            self._example_loss(logits[row, : example.num_rows], index)
            for row, (index, example) in enumerate(zip(some, examples, strict=True))
        ]
        return torch.stack(parts).sum()

    def _example_loss(self, logits: Tensor, index: int) -> Tensor:
        example, lessons = self.lessons.examples[index], self.lessons
        weights = self._base_weights(example).to(logits.device)
        next_ids = torch.tensor(example.token_ids[1:], device=logits.device)
        if lessons.targets is None:
            return -(weights * token_logprobs(logits, next_ids, lessons.temperature)).sum()
        found = lessons.targets.rows(index)
        rows = TargetRows(found.ids.to(logits.device), found.probs.to(logits.device))
        both = pieces(logits, rows, lessons.temperature)
        if lessons.weigh is not None:
            weights = weights * self._token_weights(logits.detach(), rows, next_ids, example)
        return (weights * DISTANCES[self.settings.loss](both)).sum()

    def _base_weights(self, example: Example) -> Tensor:
        """Return 1 for a place that predicts a response token, less or 0 for the prompt's."""
        weights = torch.ones(example.num_rows)
        of_prompt = 0.0 if self.lessons.targets is None else self.settings.prompt_weight
        weights[: example.first_response_row] = of_prompt
        return weights

    def _token_weights(
        self, logits: Tensor, rows: TargetRows, next_ids: Tensor, example: Example
    ) -> Tensor:
        """Return what `weigh` says of the response's tokens, 1 on average; 1 for the prompt's."""
        first = example.first_response_row
        weights = torch.ones(len(next_ids), device=logits.device)
        if first >= len(next_ids):
            return weights
        ids = next_ids[first:]
        keep = token_logprobs(logits[first:], ids, self.lessons.temperature).exp()
        if self.lessons.is_rejection:
            is_it = rows.ids[first:] == ids[:, None]
            target = (rows.probs[first:] * is_it).sum(-1)  # 0: not among the kept, so small
            keep = keep / target.clamp(min=torch.finfo(torch.float32).tiny)
        assert self.lessons.weigh is not None  # the caller asked
        found = self.lessons.weigh(keep.clamp(max=1).double().cpu().numpy())
        mean = float(found.mean())
        if mean > 0:
            weights[first:] = torch.from_numpy(found / mean).to(weights)
        return weights


def rate_at(share: float) -> float:
    """Return the factor of the learning rate: a short warm-up, then half a cosine down."""
    warm = min(1.0, (share + WARM_UP / 10) / WARM_UP)
    fallen = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * min(1.0, share))) / 2
    return warm * fallen


@contextlib.contextmanager
def weights_once(model: Any) -> Iterator[Any]:
    """Yield the model with its stored weights computed once for all passes of the block."""
    with parametrize.cached():
        yield model
