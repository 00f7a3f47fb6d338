"""Layers of the benchmark's models in float32 on one core: PyTorch's and transformers' own against this project's.

``python -m benchmarks.layers`` prints, for linear layers, how many times faster oneDNN computes the output y = x Wᵀ,
the gradient of the input and that of the weight (``rlhf/models/linear.py``); and for norms and rotary embeddings, how
many times faster their formulas compute a forward and a backward pass (``rlhf/models/norm_rotary.py``). Calls take
turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers.models.llama import modeling_llama as llama

from benchmarks.workload import SIZES, Size
from rlhf.models.linear import product, weight_gradient
from rlhf.models.norm_rotary import use_formulas

TOKENS, SHORT = 2000, 320
REPEATS = 51


def ratio(own: Callable[[], object], ours: Callable[[], object]) -> float:
    """Median seconds of the first over those of the second."""
    seconds = {own: list[float](), ours: list[float]()}
    for call in (own, ours) * (REPEATS + 1):
        begin = time.perf_counter()
        call()
        seconds[call].append(time.perf_counter() - begin)
    return statistics.median(seconds[own][1:]) / statistics.median(seconds[ours][1:])


def products(inputs: int, outputs: int) -> tuple[float, float, float]:
    """How many times faster oneDNN is for the output, the input's gradient and the weight's gradient."""
    x, weight, gradient = (torch.randn(*shape) for shape in ((TOKENS, inputs), (outputs, inputs), (TOKENS, outputs)))
    return (
        ratio(lambda: x @ weight.t(), lambda: product(x, weight)),
        ratio(lambda: gradient @ weight, lambda: product(gradient, weight.t())),
        ratio(lambda: gradient.t() @ x, lambda: weight_gradient(gradient, x)),
    )


def norm(size: Size, tokens: int) -> float:
    """How many times faster a norm's passes are by formula."""
    own, ours = llama.LlamaRMSNorm(size.hidden), llama.LlamaRMSNorm(size.hidden)
    use_formulas(ours)
    x = torch.randn(1, tokens, size.hidden, requires_grad=True)
    return ratio(lambda: _passes([own(x)]), lambda: _passes([ours(x)]))


class _Rotation(torch.nn.Module):
    """An attention layer that only rotates."""

    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return apply_rotary_pos_emb(q, k, cos, sin)


apply_rotary_pos_emb, rotate_half = llama.apply_rotary_pos_emb, llama.rotate_half
"""Global names of this module, as of every module of transformers whose layers rotate."""


def rotation(size: Size, tokens: int) -> float:
    """How many times faster the passes of a rotation of queries and keys are by formula."""
    own, ours = _Rotation(), _Rotation()
    use_formulas(ours)
    width = size.hidden // size.heads
    q, k = (torch.randn(1, tokens, size.heads, width, requires_grad=True).transpose(1, 2) for _ in range(2))
    cos, sin = torch.randn(2, 1, tokens, width)
    return ratio(lambda: _passes(own(q, k, cos, sin)), lambda: _passes(ours(q, k, cos, sin)))


def _passes(outputs: Sequence[Tensor]) -> None:
    """The backward pass behind a forward pass."""
    torch.autograd.backward(outputs, [torch.ones_like(each) for each in outputs])


def main() -> None:
    """Print two tables."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.layers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"{TOKENS} tokens, one core\n\n| layer | output | input's gradient | weight's gradient |")
    print("| --- | --- | --- | --- |")
    for name in ("3M", "25M"):
        size = SIZES[name]
        wide = (size.hidden, size.intermediate)
        for inputs, outputs in ((size.hidden, size.hidden), wide, wide[::-1]):
            cells = (f"{each:.2f}" for each in products(inputs, outputs))
            print(f"| {inputs} → {outputs} | {' | '.join(cells)} |", flush=True)
    print("\n| model | tokens | norm | rotation |\n| --- | --- | --- | --- |")
    for name in ("3M", "25M"):
        for tokens in (SHORT, TOKENS):
            cells = (f"{measure(SIZES[name], tokens):.2f}" for measure in (norm, rotation))
            print(f"| {name} | {tokens} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
