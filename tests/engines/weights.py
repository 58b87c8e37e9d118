"""Random weights in the formats that kernels take."""

from __future__ import annotations

import torch

from quantdraft.checkpoints.tensors.unpacking import Unpacked

FP8 = torch.float8_e4m3fn


def random_weight(
    fmt: str,
    columns: int = 1024,
    outputs: int = 256,
    has_zero: bool = False,
    group_size: int = 128,
    is_ordered: bool = False,
) -> Unpacked:
    """A weight of 8 bits with a scale a row or for 128 x 128, or of 4 bits in groups.

    has_zero: with zero points; is_ordered: its columns multiply the inputs in another order
    """
    generator = torch.Generator().manual_seed(0)
    if fmt.startswith("fp8"):
        values = (torch.randn((outputs, columns), generator=generator) * 100).to(FP8)
        block = (128, 128) if fmt == "fp8-block" else None
        shape = (outputs // 128, columns // 128) if block else (outputs, 1)
        scale = torch.rand(shape, generator=generator) * 1e-3 + 1e-4
        return Unpacked(values, scale, None, None, block)
    half = 8 if fmt == "int4" else 128
    integers = torch.randint(-half, half, (outputs, columns), generator=generator).to(torch.int8)
    groups = columns // group_size if fmt == "int4" else 1
    scale = torch.rand((outputs, groups), generator=generator) * 1e-2 + 1e-3
    zeros = torch.randint(-8, 8, scale.shape, generator=generator).to(torch.int8)
    weight = Unpacked(
        integers, scale, zeros if has_zero else None, group_size if fmt == "int4" else None, None
    )
    if not is_ordered:
        return weight
    return weight._replace(column_order=torch.randperm(columns, generator=generator))
