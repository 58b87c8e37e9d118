"""CPU kernels: weights stay the checkpoint's integers from memory to multiplier.

Shapes: integers (out, in) int8, scale (out, groups) float32, zero_point (out, groups) or None.
A weight is `(integer - zero_point) * scale`.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn


class Int4Linear(nn.Module):
    """4-bit weights in groups, activations untouched: `aten._weight_int4pack_mm_for_cpu`."""

    kernel = "int4pack_cpu"
    group_sizes = (32, 64, 128, 256)

    packed: Tensor
    scale_and_zero: Tensor
    bias: Tensor | None

    def __init__(
        self,
        integers: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = integers.shape
        self.group_size = self.in_features // scale.shape[1]
        if self.group_size not in self.group_sizes:
            raise ValueError(f"group size {self.group_size} is not one of {self.group_sizes}")
        # The kernel's weight is (u - 8) * scale + zero, with u in 0..15.
        offset = torch.zeros_like(scale) if zero_point is None else -zero_point.float() * scale
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers.int() + 8, 1)
        scale_and_zero = torch.stack([scale.float().T, offset.float().T], dim=-1).contiguous()
        self.register_buffer("packed", packed)
        self.register_buffer("scale_and_zero", scale_and_zero.to(dtype))
        self.register_buffer("bias", None if bias is None else bias.to(dtype))

    @property
    def weight_bytes(self) -> int:
        """Bytes of weight and scales that one product reads."""
        return int(self.packed.nbytes + self.scale_and_zero.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), in the module's float type."""
        flat = x.reshape(-1, self.in_features)
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            flat, self.packed, self.group_size, self.scale_and_zero
        )
        out = out if self.bias is None else out + self.bias
        return out.reshape(*x.shape[:-1], self.out_features)


class Int8WeightOnlyLinear(nn.Module):
    """8-bit weights, one scale a row, activations untouched: `aten._weight_int8pack_mm`."""

    kernel = "int8pack_cpu"
    integers: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        integers: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        _require_symmetric_rows(scale, zero_point)
        self.out_features, self.in_features = integers.shape
        self.register_buffer("integers", integers.to(torch.int8).contiguous())
        self.register_buffer("scale", scale[:, 0].to(dtype))
        self.register_buffer("bias", None if bias is None else bias.to(dtype))

    @property
    def weight_bytes(self) -> int:
        """Bytes of weight and scales that one product reads."""
        return int(self.integers.nbytes + self.scale.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), in the module's float type."""
        flat = x.reshape(-1, self.in_features)
        out: Tensor = torch.ops.aten._weight_int8pack_mm(flat, self.integers, self.scale)
        out = out if self.bias is None else out + self.bias
        return out.reshape(*x.shape[:-1], self.out_features)


class Int8DynamicLinear(nn.Module):
    """8-bit weights and activations: `quantized.linear_dynamic`, one activation scale per call.

    A draft step at batch 1 is one token, for which per call and per token are the same. Without
    VNNI the kernel adds pairs of products in 16 bits, which saturate (relative error 0.16 on random
    weights): activations then keep 7 bits (`reduce_range`), at no cost in time.
    """

    def __init__(
        self,
        integers: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        _require_symmetric_rows(scale, zero_point)
        self.out_features, self.in_features = integers.shape
        self.weight_bytes = integers.numel() + scale.numel() * 4
        self.reduce_range = not has_vnni()
        self.kernel = "int8_dynamic_cpu" + ("_7bit" if self.reduce_range else "")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weight = torch._make_per_channel_quantized_tensor(
                integers.to(torch.int8).contiguous(),
                scale[:, 0].double(),
                torch.zeros(len(integers), dtype=torch.long),
                0,
            )
            self.packed = torch.ops.quantized.linear_prepack(
                weight, None if bias is None else bias.float()
            )

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), in x's float type; the product itself takes float32."""
        out: Tensor = torch.ops.quantized.linear_dynamic(x.float(), self.packed, self.reduce_range)
        return out.to(x.dtype)


def _require_symmetric_rows(scale: Tensor, zero_point: Tensor | None) -> None:
    if zero_point is not None and bool(zero_point.any()):
        raise ValueError("the kernel has no zero point: weights must be symmetric")
    if scale.shape[1] != 1:
        raise ValueError("the kernel has one scale a row, not groups")


def has_vnni() -> bool:
    """True when this CPU multiplies bytes into 32 bits, so that full 8-bit activations are safe."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"))
