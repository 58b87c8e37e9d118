"""How far a quantized model's logits may be from those of its stored numbers, by its arithmetic."""

from __future__ import annotations

import pytest

from quantdraft.checkpoints.formats import SCHEMES
from quantdraft.quantize.proof.proof import (
    LOGIT_DISTANCE_LIMITS,
    SIXTEEN_BIT_LOGIT_LIMIT,
    logit_limit,
)


@pytest.mark.parametrize("scheme", ["NF4", "NF4_DOUBLE", "FP4", "NVFP4A16"])
def test_what_multiplies_in_16_bits_has_the_limit_of_16_bits(scheme: str) -> None:
    """NF4 parts by 0.026 after 30 layers, which is arithmetic; wrong weights part by 0.28."""
    assert 0.026 < logit_limit(SCHEMES[scheme]) == SIXTEEN_BIT_LOGIT_LIMIT < 0.28


def test_weights_that_unpack_to_their_own_numbers_are_held_closer() -> None:
    assert logit_limit(SCHEMES["W4A16"]) == LOGIT_DISTANCE_LIMITS[None]
    assert logit_limit(SCHEMES["W8A8"]) == LOGIT_DISTANCE_LIMITS["int8"]
