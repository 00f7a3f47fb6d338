"""Products of a linear layer in float32 on one core: PyTorch's own against oneDNN's, in turns.

``python -m benchmarks.linear`` prints, for layers of the benchmark's models, how many times faster oneDNN computes the
output y = x Wᵀ, the gradient of the input and that of the weight (``rlhf/models/linear.py``).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.workload import SIZES
from rlhf.models.linear import product

TOKENS = 2000
REPEATS = 51


def ratio(own: Callable[[], Tensor], onednn: Callable[[], Tensor]) -> float:
    """Median seconds of the first over those of the second."""
    seconds = {own: list[float](), onednn: list[float]()}
    for call in (own, onednn) * (REPEATS + 1):
        begin = time.perf_counter()
        call()
        seconds[call].append(time.perf_counter() - begin)
    return statistics.median(seconds[own][1:]) / statistics.median(seconds[onednn][1:])


def measure(inputs: int, outputs: int) -> tuple[float, float, float]:
    """How many times faster oneDNN is for the output, the input's gradient and the weight's gradient."""
    x, weight, gradient = (torch.randn(*shape) for shape in ((TOKENS, inputs), (outputs, inputs), (TOKENS, outputs)))
    return (
        ratio(lambda: x @ weight.t(), lambda: product(x, weight)),
        ratio(lambda: gradient @ weight, lambda: product(gradient, weight.t())),
        ratio(lambda: gradient.t() @ x, lambda: product(gradient.t(), x.t())),
    )


def main() -> None:
    """Print a table."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"{TOKENS} tokens, one core\n\n| layer | output | input's gradient | weight's gradient |")
    print("| --- | --- | --- | --- |")
    for name in ("3M", "25M"):
        size = SIZES[name]
        wide = (size.hidden, size.intermediate)
        for inputs, outputs in ((size.hidden, size.hidden), wide, wide[::-1]):
            cells = (f"{each:.2f}" for each in measure(inputs, outputs))
            print(f"| {inputs} → {outputs} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
