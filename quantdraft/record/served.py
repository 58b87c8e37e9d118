"""Requests that a serving engine answered, with its own counters."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from quantdraft.record.terms import Amount, Count, K, Seconds

FLOAT_TYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """One prompt, answered once by one server; requests are sent one at a time.

    The counters are the differences of the engine's own around this request. Times are seconds
    from sending it.
    """

    prompt_id: str
    num_tokens: Count
    num_first_tokens: Count  # that came first, from the prefill: their time is no decoding
    seconds: Seconds
    first_token_seconds: Seconds
    num_drafts: Count
    num_draft_tokens: Count
    num_accepted_tokens_per_pos: tuple[Count, ...]  # empty without a draft
    num_drafts_replayed: Amount | None  # on the text the engine emitted; None without a draft
    # Against the traffic's; "own": the traffic does not say how it was sampled.
    text: Literal["identical", "near-tie", "divergent", "sampled", "own"]
    # Rounds if every near-tie of the draft were kept, and if none were; None: arithmetic is exact.
    num_drafts_low: Amount | None = None
    num_drafts_high: Amount | None = None
    load: Count | None = None  # which start of the arm's server answered: 0, 1, …; None: not known

    @property
    def decode_seconds(self) -> float:
        """From the first token to the last."""
        return self.seconds - self.first_token_seconds

    @property
    def num_decoded(self) -> int:
        """Tokens that came after the first."""
        return self.num_tokens - self.num_first_tokens

    @property
    def replayed_rounds(self) -> tuple[float, float, float]:
        """Replayed rounds, and the fewest and most that near-ties allow; equal where exact."""
        found = self.num_drafts_replayed or 0.0
        if self.num_drafts_low is None or self.num_drafts_high is None:
            return found, found, found
        return found, self.num_drafts_low, self.num_drafts_high


@dataclass(frozen=True, slots=True)
class ServedArm:
    """One server's requests, in the order they were sent: every prompt comes several times."""

    name: str  # "autoregressive" | "baseline" | "candidate" | "control"
    requests: tuple[ServedRequest, ...]
    # False in 16 bits, or where the draft rounds its activations: the engine's kernels and the
    # replay's then differ at near-ties of the draft.
    is_exact: bool = True

    @property
    def loads(self) -> tuple[int, ...]:
        """The starts of the server that answered; () of a record that does not say."""
        return tuple(sorted({r.load for r in self.requests if r.load is not None}))

    @property
    def mean_acceptance_length(self) -> float | None:
        """Tokens a round by the engine's counters; None for an arm without rounds."""
        num_drafts = sum(request.num_drafts for request in self.requests)
        # The first token is the prefill's and belongs to no round.
        return sum(r.num_tokens - 1 for r in self.requests) / num_drafts if num_drafts else None

    @property
    def median_first_token_ms(self) -> float:
        """The middle request's time to its first token."""
        return 1e3 * median(request.first_token_seconds for request in self.requests)

    @property
    def replayed(self) -> tuple[ServedRequest, ...]:
        """The requests whose text was replayed."""
        return tuple(r for r in self.requests if r.num_drafts_replayed is not None)

    @property
    def replayed_rounds(self) -> tuple[float, float, float]:
        """Rounds of the replayed requests, and the fewest and most that near-ties allow."""
        ends = [request.replayed_rounds for request in self.replayed]
        return sum(e[0] for e in ends), sum(e[1] for e in ends), sum(e[2] for e in ends)

    @property
    def knows_near_ties(self) -> bool:
        """True where every replayed request says what near-ties of the draft allow."""
        return all(r.num_drafts_low is not None for r in self.replayed)

    @property
    def num_equal(self) -> int:
        """Replayed requests whose rounds counted and replayed are the same number."""
        return sum(abs(r.num_drafts - r.replayed_rounds[0]) < 1e-6 for r in self.replayed)

    @property
    def num_accepted_per_pos(self) -> tuple[int, ...]:
        """Accepted tokens of the replayed requests by position in the round."""
        return tuple(
            sum(each)
            for each in zip(*(r.num_accepted_tokens_per_pos for r in self.replayed), strict=True)
        )


@dataclass(frozen=True, slots=True)
class Served:
    """What a serving engine did with the traffic: times, its own counters, its text.

    An arm that is absent from `arms` was not served; `undefined` says why, by arm name.
    """

    engine: str
    version: str
    device: str
    dtype: str  # of the servers, as far as they tell
    num_speculative_tokens: K
    speculative: dict[str, Any]  # the user's own keys of the speculative config
    is_interleaved: bool  # all servers up at once, requests in turns; False: one after another
    arms: dict[str, ServedArm]
    undefined: dict[str, str] = field(default_factory=dict)
    is_expectation: bool = False  # True when rounds agree only in the mean (sampling rules)
    load_average: tuple[Amount, Amount] | None = None  # before and after
    replay_dtype: str | None = None  # in which the rounds were replayed
    is_synthetic: bool = False  # the engine was told how much to accept; nothing was replayed

    @property
    def known_dtype(self) -> str | None:
        """The float type of the servers; None where they are the user's and do not tell."""
        return self.dtype if self.dtype in FLOAT_TYPES else None

    @property
    def common_prompts(self) -> tuple[str, ...]:
        """Prompts that every arm answered with more than its first token, in the order asked."""
        asked = [
            {r.prompt_id for r in arm.requests if r.num_decoded > 0} for arm in self.arms.values()
        ]
        common = set.intersection(*asked) if asked else set()
        first = next(iter(self.arms.values())).requests if self.arms else ()
        return tuple(dict.fromkeys(r.prompt_id for r in first if r.prompt_id in common))

    def ms_per_token(self, arm: str) -> float | None:
        """Return an arm's decoding time of the common prompts over their tokens; None: none."""
        common = set(self.common_prompts)
        found = [r for r in self.arms[arm].requests if r.prompt_id in common]
        num_tokens = sum(request.num_decoded for request in found)
        seconds = sum(request.decode_seconds for request in found)
        return 1e3 * seconds / num_tokens if num_tokens else None
