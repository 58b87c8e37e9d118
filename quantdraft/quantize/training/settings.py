"""What a training is asked for. Plain data: no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from quantdraft.errors import OptionError

Loss = Literal["kl", "tv", "lk", "ce", "rounds", "rounds-kl"]
LOSSES: dict[str, str] = {
    "kl": "Kullback-Leibler divergence from the target's distribution to the draft's",
    "tv": "total variation: the probability that a sampled proposal is rejected",
    "lk": "minus the logarithm of the probability that a sampled proposal is kept",
    "ce": "cross-entropy with the tokens of the responses; needs no target",
    "rounds": "total variation, each token weighted by the expected rounds that keeping it saves",
    "rounds-kl": "the same weights on the Kullback-Leibler divergence",
}
WITHOUT_TARGET = "ce"
NUM_LOOKS = 10  # at the selection part, evenly over the budget


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a draft is trained; defaults are the command line's."""

    loss: Loss = "kl"
    k: int = 4  # the number of speculative tokens at which drafts are compared
    minutes: float | None = None  # of training, over all runs together
    epochs: float | None = None  # passes over the training part
    learning_rate: float = 5e-5
    batch_tokens: int = 1024  # of one update
    max_length: int = 1024  # tokens of a conversation that are read; the rest is left out
    prompt_weight: float = 1.0  # of a prompt's tokens, where a response's weigh 1
    num_probabilities: int | None = None  # kept of the target's; None: by what they lose
    patience: int = 6  # looks without a better draft after which training ends
    seed: int = 0

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings, one sentence each."""
        if (self.minutes is None) == (self.epochs is None):
            yield "give either --minutes or --epochs: how long to train."
        for option, value in (("--minutes", self.minutes), ("--epochs", self.epochs)):
            if value is not None and value <= 0:
                yield f"{option} {value:g} must be above 0."
        if not 0 < self.learning_rate < 1:
            yield f"--learning-rate {self.learning_rate:g} must be above 0 and below 1."
        for option, number in (
            ("-k", self.k),
            ("--batch-tokens", self.batch_tokens),
            ("--num-probabilities", self.num_probabilities),
            ("--patience", self.patience),
        ):
            if number is not None and number < 1:
                yield f"{option} {number} must be at least 1."
        if self.max_length < 2:
            yield f"--max-length {self.max_length} must be at least 2."
        if not 0 <= self.prompt_weight <= 1:
            yield f"--prompt-weight {self.prompt_weight:g} must lie in [0, 1]."

    def check(self) -> None:
        """Raise OptionError with every problem of the settings."""
        if problems := list(self.problems()):
            raise OptionError(" ".join(problems))

    @property
    def needs_target(self) -> bool:
        """True for a loss that compares distributions."""
        return self.loss != WITHOUT_TARGET

    @property
    def is_weighted(self) -> bool:
        """True for a loss that weighs each token by the rounds that it saves."""
        return self.loss.startswith("rounds")

    def as_record(self) -> dict[str, Any]:
        """Return them as JSON values."""
        return asdict(self)
