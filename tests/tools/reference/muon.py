"""The Muon optimizer: orthogonalized momentum; half of AdamW's tokens to the same loss here.

Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
torch.optim.Muon iterates in bf16, which a CPU without bf16 instructions multiplies 500 times slower
than float32, and one matrix at a time; here equal shapes go through one batched product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


@torch.no_grad()
def orthogonalized_step(
    stack: list[nn.Parameter],
    momentum: Tensor,
    lr: float,
    beta: float = 0.95,
    weight_decay: float = 0.01,
) -> None:
    """One step of every matrix in `stack`, all of one shape; updates `momentum` (n, rows, cols)."""
    grads = torch.stack([p.grad for p in stack if p.grad is not None])
    momentum.lerp_(grads, 1 - beta)
    update = orthogonalize(grads.lerp(momentum, beta))
    rows, cols = stack[0].shape
    scale = max(1.0, rows / cols) ** 0.5
    for parameter, direction in zip(stack, update, strict=True):
        parameter.mul_(1 - lr * weight_decay)
        parameter.add_(direction, alpha=-lr * scale)


def orthogonalize(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """(n, rows, cols) → the same, singular values near 1 (Newton-Schulz, quintic)."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if is_tall else x
    return result
