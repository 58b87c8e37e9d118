"""Single operations against float64, tails and all; programs keep the order of their steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from quantdraft.engines.kernels.operations import (
    AddNorm,
    Embedding,
    Gate,
    Given,
    PickedNorm,
    Program,
    operations_fault,
)

lacking = operations_fault()
if lacking is not None:
    pytest.skip(f"not offered on this machine: {lacking}", allow_module_level=True)

ULP = 2.0**-23  # of a float32 around 1
SIZES = [1, 7, 8, 9, 16, 33, 70, 4097]


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("has_added", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_a_norm_adds_the_residual_and_divides_by_the_root_of_the_mean_square(size, has_added, rows):
    x, added, weight = random(rows, size), random(rows, size, seed=1), random(size, seed=2)
    before, out = x.clone(), torch.empty(rows, size)
    operation = AddNorm(
        x=x, added=added if has_added else None, weight=weight, out=out,
        rows=rows, size=size, threads=2, eps=1e-5,
    )  # fmt: skip
    Program([operation]).run()
    total = before + added if has_added else before
    assert torch.equal(x, total)
    # The sum of squares is right to a few units (eight partial sums), its root to half of that,
    # and two products follow.
    wanted = rms_norm(total, weight, 1e-5)
    assert ((out.double() - wanted).abs() <= (4 + size**0.5 / 8) * ULP * wanted.abs()).all()


def test_the_last_norm_takes_the_picked_tokens_and_leaves_the_others():
    batch, tokens, size = 3, 4, 19
    x, added, weight = random(batch * tokens, size), random(12, size, seed=1), random(size, seed=2)
    at, out, before = torch.tensor([[0, 3], [2, 2], [1, 0]]), torch.empty(6, size), x.clone()
    operation = PickedNorm(
        given=Given(at=at), x=x, added=added, weight=weight, out=out,
        rows=12, size=size, threads=1, tokens=tokens, picked=2, eps=1e-5,
    )  # fmt: skip
    Program([operation]).run()
    total = (x + added).view(batch, tokens, size)
    picked = torch.stack([total[row, at[row]] for row in range(batch)]).flatten(0, 1)
    assert torch.allclose(out.double(), rms_norm(picked, weight, 1e-5), rtol=6 * ULP, atol=0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", SIZES)
def test_a_gate_is_silu_of_the_gate_times_up(size):
    gate_up, out = 8 * random(20, 2 * size), torch.empty(20, size)
    Program([Gate(gate_up=gate_up, out=out, rows=20, size=size, threads=2)]).run()
    gate, up = gate_up.double().chunk(2, dim=-1)
    # e^x is right to 2 units, and a sum, a quotient and a product follow.
    assert torch.allclose(out.double(), gate * gate.sigmoid() * up, rtol=5 * ULP, atol=1e-37)


def test_a_gate_at_the_ends_of_the_numbers():
    gates = torch.tensor([0.0, -0.0, 88.0, 1e4, 3e38, math.inf, -88.0, -1e4, -3e38, math.nan])
    gate_up, out = torch.cat([gates, torch.ones(10)])[None], torch.empty(1, 10)
    Program([Gate(gate_up=gate_up, out=out, rows=1, size=10, threads=1)]).run()
    assert torch.equal(out[0, :6], gates[:6])
    assert (out[0, 6:9].abs() < 2).all()
    assert out[0, 9].isnan()


def test_rows_of_a_table_in_both_types():
    ids = torch.tensor([[2, 0, 2, 4]])
    for dtype in (torch.float32, torch.bfloat16):
        table, out = random(5, 13).to(dtype), torch.empty(4, 13)
        operation = Embedding(
            given=Given(ids=ids), table=table, out=out,
            rows=4, size=13, vocab=5, is_bf16=dtype == torch.bfloat16,
        )  # fmt: skip
        Program([operation]).run()
        assert torch.equal(out, table[ids[0]].float())


def test_calls_of_python_come_between_the_operations_in_order():
    gate_up, out = torch.ones(1, 16), torch.empty(1, 8)
    gate = Gate(gate_up=gate_up, out=out, rows=1, size=8, threads=1)
    seen = []
    steps = [gate, lambda: seen.append(float(out[0, 0])), lambda: gate_up.mul_(2), gate, gate]
    program = Program([*steps, lambda: seen.append(float(out[0, 0]))])
    for _ in range(2):
        gate_up.fill_(1)
        program.run()
    one, two = 1 / (1 + math.exp(-1)), 4 / (1 + math.exp(-2))
    assert seen == pytest.approx([one, two, one, two], rel=5 * ULP)


def test_a_program_keeps_alive_what_it_points_to():
    def program(out: Tensor) -> Program:
        gate_up = torch.ones(1, 2048)
        return Program([Gate(gate_up=gate_up, out=out, rows=1, size=1024, threads=1)])

    out = torch.empty(1, 1024)
    made = program(out)
    others = [torch.full((1, 2048), 7.0) for _ in range(50)]  # would take freed memory
    made.run()
    assert torch.allclose(out, torch.tensor(1 / (1 + math.exp(-1))), rtol=5 * ULP)
    assert len(others) == 50


def test_a_fault_stops_the_program():
    x, seen = torch.zeros(1, 4), []
    bad = Embedding(
        given=Given(ids=torch.tensor([9])), table=torch.zeros(3, 4), out=x,
        rows=1, size=4, vocab=3, is_bf16=False,
    )  # fmt: skip
    with pytest.raises(IndexError, match="token id is outside the embedding table"):
        Program([bad, lambda: seen.append(1)]).run()
    assert not seen
