"""The prompts on which the candidate loses most, token by token, so that a person can read them.

For reading: what is counted is in the record's `prompts`. No model: how ids are spelt is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from quantdraft.judge.acceptance import Floats, Replayed
from quantdraft.record import ARMS, Arm, Disagreement
from quantdraft.traffic.responses import Response
from quantdraft.traffic.traffic import Traffic

Spell = Callable[[Sequence[int]], list[str]]  # token ids -> the text of each

NUM_PROMPTS = 6
NUM_TOKENS = 256  # of a response
NUM_PROMPT_TOKENS = 64  # of the end of a prompt


def find_disagreements(
    traffic: Traffic,
    probabilities: Mapping[str, Sequence[Floats]],
    replayed: Mapping[Arm, Replayed],
    k: int,
    spell: Spell,
) -> tuple[Disagreement, ...]:
    """Return the prompts that cost the candidate most rounds beyond the baseline's, most first.

    probabilities: "baseline" and "candidate", per prompt (num_response_tokens,)
    """
    before, after = (replayed[arm].num_drafts[replayed[arm].row(k)] for arm in ARMS)
    lost = after - before
    worst = [int(at) for at in np.argsort(-lost, kind="stable")[:NUM_PROMPTS] if lost[at] > 0]
    return tuple(
        _disagreement(traffic.responses[at], {arm: probabilities[arm][at] for arm in ARMS}, spell)
        for at in worst
    )


def _disagreement(
    response: Response, probabilities: Mapping[Arm, Floats], spell: Spell
) -> Disagreement:
    ids = response.response_token_ids
    return Disagreement(
        prompt_id=response.prompt_id,
        domain=response.domain,
        prompt_end="".join(spell(response.prompt_token_ids[-NUM_PROMPT_TOKENS:])),
        tokens=tuple(spell(ids[:NUM_TOKENS])),
        baseline_keep=tuple(probabilities["baseline"][:NUM_TOKENS].tolist()),
        candidate_keep=tuple(probabilities["candidate"][:NUM_TOKENS].tolist()),
        num_tokens_left_out=max(0, len(ids) - NUM_TOKENS),
    )
