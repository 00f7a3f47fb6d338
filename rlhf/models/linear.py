"""Linear layers in float32 on CPUs by oneDNN, which computes them faster than the library behind ``torch.matmul``.

PyTorch multiplies float32 matrices with MKL, and in bfloat16 with oneDNN. On AMD processors MKL takes its kernels for
AVX2. oneDNN's are 1.1 to 1.2 times faster there with AVX2, and 1.6 to 2.3 times with AVX-512 (docs/performance.md).

oneDNN compiles a kernel for every new shape, in 0.5 to 0.9 ms. So small products stay with PyTorch, and rows are filled
to a multiple of ``packed_row.FILL`` tokens, which leaves few shapes. Which library computes depends on the shape alone:
a resumed run computes the same bits. Gradients can be differentiated no further.

Shapes: x (…, i) input, W (o, i) weight, b (o,) bias, y (…, o) output.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rlhf.device import prefers_onednn

SMALLEST, NARROWEST = 2**24, 256
"""oneDNN is used from this many multiplications (0.3 ms on one core), for layers of at least this width."""


def use_onednn(network: nn.Module) -> None:
    """Have the network's plain linear layers compute by oneDNN where that is faster."""
    for layer in network.modules():
        if type(layer).forward is nn.Linear.forward and "forward" not in vars(layer):
            layer.forward = partial(_linear, layer)


def _linear(layer: nn.Linear, input: Tensor) -> Tensor:
    """``nn.Linear.forward``, whose argument has this name."""
    weight, bias = layer.weight, layer.bias
    is_small = input.dim() < 2 or input.numel() * len(weight) < SMALLEST or min(weight.shape) < NARROWEST
    if is_small or not prefers_onednn(input) or weight.dtype != input.dtype or input.shape[-1] != weight.shape[1]:
        return functional.linear(input, weight, bias)
    if not torch.is_grad_enabled():
        return product(input, weight, bias)
    y: Tensor = _OneDnnLinear.apply(input, weight, bias)
    return y


class _OneDnnLinear(torch.autograd.Function):
    """y = x Wᵀ + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        return (
            product(gradient, weight.t()) if needs_x else None,
            weight_gradient(rows, x.flatten(0, -2)) if needs_weight else None,
            rows.sum(dim=0) if needs_bias else None,
        )


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """gᵀ x of the gradient g (N, o) and the input x (N, i).

    oneDNN is faster where the left matrix is the smaller one; for few tokens adding the transposed result costs more.
    """
    if x.shape[1] < gradient.shape[1] <= len(x):
        return product(x.t(), gradient.t()).t()
    return product(gradient.t(), x.t())


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b by oneDNN, in float32; strides may be any."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return y
