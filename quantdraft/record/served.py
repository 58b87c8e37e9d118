"""What a serving engine did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

FLOAT_TYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """One prompt, answered once by one server; requests are sent one at a time.

    The counters are the differences of the engine's own around this request. Times are seconds
    from sending it.
    """

    prompt_id: str
    num_tokens: int
    num_first_tokens: int  # that came first, from the prefill: their time is no decoding
    seconds: float
    first_token_seconds: float
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens_per_pos: tuple[int, ...]  # empty without a draft
    num_drafts_replayed: float | None  # on the text the engine emitted; None without a draft
    # Against the traffic's; "own": the traffic does not say how it was sampled.
    text: Literal["identical", "near-tie", "divergent", "sampled", "own"]
    # Rounds if every near-tie of the draft were kept, and if none were; None: arithmetic is exact.
    num_drafts_low: float | None = None
    num_drafts_high: float | None = None
    load: int | None = None  # which start of the arm's server answered: 0, 1, …; None: not known

    @property
    def decode_seconds(self) -> float:
        """From the first token to the last."""
        return self.seconds - self.first_token_seconds

    @property
    def num_decoded(self) -> int:
        """Tokens that came after the first."""
        return self.num_tokens - self.num_first_tokens


@dataclass(frozen=True, slots=True)
class ServedArm:
    """One server's requests, in the order they were sent: every prompt comes several times."""

    name: str  # "autoregressive" | "baseline" | "candidate" | "control"
    requests: tuple[ServedRequest, ...]
    # False in 16 bits, or where the draft rounds its activations: the engine's kernels and the
    # replay's then differ at near-ties of the draft.
    is_exact: bool = True


@dataclass(frozen=True, slots=True)
class Served:
    """What a serving engine did with the traffic: times, its own counters, its text.

    An arm that is absent from `arms` was not served; `undefined` says why, by arm name.
    """

    engine: str
    version: str
    device: str
    dtype: str  # of the servers, as far as they tell
    num_speculative_tokens: int
    speculative: dict[str, Any]  # the user's own keys of the speculative config
    is_interleaved: bool  # all servers up at once, requests in turns; False: one after another
    arms: dict[str, ServedArm]
    undefined: dict[str, str] = field(default_factory=dict)
    is_expectation: bool = False  # True when rounds agree only in the mean (sampling rules)
    load_average: tuple[float, float] | None = None  # before and after
    replay_dtype: str | None = None  # in which the rounds were replayed
    is_synthetic: bool = False  # the engine was told how much to accept; nothing was replayed

    @property
    def known_dtype(self) -> str | None:
        """The float type of the servers; None where they are the user's and do not tell."""
        return self.dtype if self.dtype in FLOAT_TYPES else None
