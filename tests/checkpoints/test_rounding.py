"""Inputs are rounded as the schemes' own libraries round them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from quantdraft.checkpoints.formats import SCHEMES  # noqa: E402
from quantdraft.checkpoints.stored_formats import stored_format  # noqa: E402
from quantdraft.checkpoints.tensors.rounding import round_inputs  # noqa: E402


def inputs(rows: int = 6, columns: int = 256) -> torch.Tensor:
    """One prompt's tokens, of very different sizes, one of them zero."""
    values = torch.randn(1, rows, columns, generator=torch.Generator().manual_seed(0))
    sizes = torch.logspace(-3, 3, rows).unsqueeze(1)
    sizes[0] = 0.0
    return values * sizes


def test_int8_inputs_are_rounded_per_token_to_within_half_a_step() -> None:
    given = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    rounded = round_inputs(given, SCHEMES["W8A8"])
    step = given.abs().amax(-1, keepdim=True) / 127.5
    assert ((rounded - given).abs() <= 0.5 * step * 1.001).all()
    assert not torch.equal(rounded, given)


@pytest.mark.parametrize("scheme", ["W4A16", "NVFP4A16", "NF4"])
def test_weight_only_schemes_leave_inputs_alone(scheme: str) -> None:
    given = torch.randn(2, 8)
    assert round_inputs(given, SCHEMES[scheme]) is given


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK", "MXFP8", "MXFP4", "NVFP4", "W8A8"])
def test_rounding_equals_compressed_tensors(scheme: str) -> None:
    """The library's own dynamic quantization of a module's inputs, to the last bit but for ties."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize

    from quantdraft.quantize.backends.config_groups import scheme as scheme_of

    module, given = torch.nn.Linear(256, 8), inputs()
    args = scheme_of(SCHEMES[scheme], "Linear").input_activations
    module.quantization_status = quantization.QuantizationStatus.FROZEN
    factor = None
    if SCHEMES[scheme].has_static_inputs:
        factor = torch.tensor([448.0 * 6 / float(given.abs().max())])
        module.input_global_scale = factor
    expected = forward_quantize(module, given.clone(), "input", args)
    found = round_inputs(given, SCHEMES[scheme], factor)
    # Scales come by another order of the same operations: a tie may fall to the other side.
    assert (found != expected).float().mean() < 0.01
    assert torch.allclose(found, expected, rtol=0.5, atol=1e-6)


@pytest.mark.parametrize("kind", ["int", "float"])
def test_rounding_to_a_calibrated_scale_equals_compressed_tensors(kind: str) -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize

    args = {"num_bits": 8, "type": kind, "strategy": "tensor", "symmetric": True}
    weights = {"num_bits": 8, "type": kind, "strategy": "channel", "symmetric": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": args}
    fmt = stored_format({"config_groups": {"g": group}}, "m")
    assert fmt is not None
    assert fmt.has_static_inputs
    module, given = torch.nn.Linear(256, 8), inputs()
    module.quantization_status = quantization.QuantizationStatus.FROZEN
    module.input_scale, module.input_zero_point = torch.tensor([0.37]), torch.zeros(1)
    wanted = forward_quantize(module, given, "input", quantization.QuantizationArgs(**args))
    assert torch.equal(round_inputs(given, fmt, module.input_scale), wanted)


def test_a_static_scale_is_used_as_stored_and_limits_what_exceeds_it() -> None:
    given = torch.tensor([[1.0, 500.0, -1000.0]])
    rounded = round_inputs(given, SCHEMES["FP8_STATIC"], torch.tensor([1.0]))
    assert rounded.tolist() == [[1.0, 448.0, -448.0]]


def test_llm_int8_leaves_outlier_columns_exact() -> None:
    given = torch.tensor([[0.3, 7.123, 0.5], [0.1, 0.123, -0.4]])
    rounded = round_inputs(given, SCHEMES["LLM_INT8"])
    assert torch.equal(rounded[:, 1], given[:, 1])
    step = torch.tensor([0.5, 0.4]) / 127  # each token's largest input that is no outlier
    assert ((rounded - given).abs().amax(-1) <= 0.5 * step * 1.001).all()
    assert not torch.equal(rounded, given)
