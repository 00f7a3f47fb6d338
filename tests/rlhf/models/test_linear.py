"""Linear layers by oneDNN: numbers of NumPy in float64, gradients, and what is left to PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from rlhf.models.linear import NARROWEST, SMALLEST, use_onednn

WIDTH, OUT = NARROWEST, 512
ROWS = SMALLEST // (WIDTH * OUT)
"""Rows from which oneDNN is used."""


def layer(bias: bool = True, out: int = OUT) -> nn.Linear:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(WIDTH, out, bias=bias))
    use_onednn(network)
    found = network[0]
    assert isinstance(found, nn.Linear)
    return found


def is_onednn(call: Callable[[], Tensor]) -> bool:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    return any("_linear_pointwise" in event.key for event in seen.key_averages())


def relative_error(found: Tensor, expected: np.ndarray) -> float:
    return float(np.abs(found.detach().numpy() - expected).max() / np.abs(expected).max())


def strided() -> Tensor:
    return torch.randn(WIDTH, ROWS).t()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(1, ROWS, WIDTH),
        lambda: torch.randn(ROWS, 2, WIDTH).transpose(0, 1),
        strided,
        lambda: torch.randn(OUT, WIDTH),  # tokens from which the weight's gradient is computed transposed
    ],
)
def test_outputs_and_gradients_equal_float64(make: Callable[[], Tensor], bias: bool) -> None:
    linear = layer(bias)
    x = make().requires_grad_()
    y = linear(x)
    weighting = torch.randn_like(y)
    (y * weighting).sum().backward()
    values, grad, weight = (each.detach().double().numpy() for each in (x, weighting, linear.weight))
    offset = linear.bias.detach().double().numpy() if bias else 0.0
    rows, grads = values.reshape(-1, WIDTH), grad.reshape(-1, OUT)
    assert relative_error(y, values @ weight.T + offset) < 3e-6
    assert x.grad is not None and linear.weight.grad is not None
    assert relative_error(x.grad, grad @ weight) < 3e-6
    assert relative_error(linear.weight.grad, grads.T @ rows) < 3e-6
    if bias:
        assert relative_error(linear.bias.grad, grads.sum(axis=0)) < 3e-6


def test_large_float32_products_are_computed_by_onednn_and_the_others_by_pytorch() -> None:
    linear = layer()
    assert is_onednn(lambda: linear(torch.randn(ROWS, WIDTH)))
    assert not is_onednn(lambda: linear(torch.randn(ROWS - 1, WIDTH)))
    narrow = layer(out=NARROWEST - 1)
    assert not is_onednn(lambda: narrow(torch.randn(4 * ROWS, WIDTH)))
    half = layer().bfloat16()
    assert not is_onednn(lambda: half(torch.randn(ROWS, WIDTH, dtype=torch.bfloat16)))


@pytest.mark.parametrize("tokens", [ROWS, OUT])
def test_both_gradients_are_computed_by_onednn(tokens: int) -> None:
    x = torch.randn(tokens, WIDTH, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        layer(bias=False)(x).sum().backward()
    counts = {event.key: event.count for event in seen.key_averages()}
    assert counts["mkldnn::_linear_pointwise"] == 3 and "aten::mm" not in counts


def test_what_it_does_not_compute_is_left_to_pytorch() -> None:
    """One row alone, autocast, and a wrong width, whose error is then PyTorch's."""
    wide = layer(out=SMALLEST // WIDTH)
    row = torch.randn(WIDTH, requires_grad=True)
    wide(input=row).sum().backward()
    assert row.grad is not None and row.grad.shape == (WIDTH,)
    linear = layer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(torch.randn(ROWS, WIDTH)).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(torch.randn(ROWS, 2 * WIDTH))


def test_a_frozen_weight_keeps_no_input_and_gets_no_gradient() -> None:
    linear = layer(bias=False)
    linear.requires_grad_(False)
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    y = linear(x)
    assert y.grad_fn is not None
    kept = [tensor for tensor in y.grad_fn.saved_tensors if tensor is not None]
    assert [tensor.shape for tensor in kept] == [linear.weight.shape]
    y.sum().backward()
    assert x.grad is not None and linear.weight.grad is None
    assert relative_error(x.grad, np.ones((ROWS, OUT)) @ linear.weight.double().numpy()) < 3e-6


def test_the_same_input_gives_the_same_bits() -> None:
    linear, x = layer(), torch.randn(ROWS, WIDTH)
    assert torch.equal(linear(x), linear(x))


def test_a_layer_with_a_forward_pass_of_its_own_keeps_it() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    own, head = Doubled(WIDTH, OUT), nn.Linear(WIDTH, OUT)
    head.forward = lambda x: x + 1  # type: ignore[method-assign]
    use_onednn(nn.ModuleList([own, head]))
    x = torch.randn(ROWS, WIDTH)
    assert "forward" not in vars(own)
    assert torch.equal(head(x), x + 1)
    assert not is_onednn(lambda: own(x))
