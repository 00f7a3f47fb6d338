"""Finds numbers that are NaN or infinite during an update, without a wait for the device before its end."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf.errors import NonFiniteError


class FiniteCheck:
    """Counts non-finite numbers of an update's tensors by name, on the device, until ``require`` reads the counts."""

    def __init__(self) -> None:
        self._counts: dict[str, Tensor] = {}
        self._sizes: dict[str, int] = {}

    def watch(self, name: str, tensor: Tensor) -> Tensor:
        """Count the tensor's non-finite numbers under this name; returns the tensor. All ranks watch the same names."""
        count = _non_finite(tensor)
        self._counts[name] = self._counts[name] + count if name in self._counts else count
        self._sizes[name] = self._sizes.get(name, 0) + tensor.numel()
        return tensor

    def require(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Read and reset the counts (collective): all ranks raise, or none.

        Raises:
            NonFiniteError: some numbers are not finite; the message names their tensor.
        """
        names, sizes = list(self._counts), list(self._sizes.values())
        if not names:
            return
        counts = torch.stack(list(self._counts.values()))
        self._counts, self._sizes = {}, {}
        totals = sum_over_ranks(torch.cat([counts, counts.new_tensor(sizes)])).view(2, -1)
        for name, bad, size in zip(names, *totals.tolist(), strict=True):
            if bad:
                raise _error(name, int(bad), int(size))


def require_finite(name: str, tensor: Tensor) -> None:
    """Check one tensor.

    Raises:
        NonFiniteError: some elements are not finite; the message names the tensor.
    """
    if bad := int(_non_finite(tensor)):
        raise _error(name, bad, tensor.numel())


def _non_finite(tensor: Tensor) -> Tensor:
    return (~torch.isfinite(tensor.detach())).sum()


def _error(name: str, bad: int, size: int) -> NonFiniteError:
    return NonFiniteError(f"numbers that are NaN or infinite during the update, in {name}: {bad} of {size}")
