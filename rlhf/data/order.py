"""The order of data: seeded, without repetition within an epoch, resumable at any item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlhf.errors import UserError
from rlhf.types import Int64

MOST_UPDATES = 1_000_000
"""Most updates of a stage: more than a day at ten per second. All batches are drawn before the first update."""


@dataclass(frozen=True)
class OrderState:
    """State of an order: ``position`` items of epoch ``epoch`` were taken."""

    epoch: int
    position: int


class PromptOrder:
    """An endless order over ``n`` items; epoch e is a permutation drawn from (seed, e). A batch may span epochs."""

    def __init__(self, n: int, seed: int) -> None:
        if n < 1:
            raise ValueError(f"an order needs at least one item, not {n}")
        self._n, self._seed = n, seed
        self._start_epoch(0, 0)

    def _start_epoch(self, epoch: int, position: int) -> None:
        self._epoch = epoch
        self._position = position
        self._permutation: Int64 = np.random.default_rng([self._seed, epoch]).permutation(self._n)

    @classmethod
    def restore(cls, n: int, seed: int, state: OrderState) -> PromptOrder:
        """Restore the order from the result of ``state()``.

        Raises:
            UserError: the state does not fit ``n`` items: the data changed since it was saved.
        """
        if not 0 <= state.position < n:
            raise UserError(
                f"the saved data order is at item {state.position}, but there are only {n} items",
                "the data changed since the checkpoint was written",
                "resume with the same data and data settings, or start a new run",
            )
        order = cls(n, seed)
        order._start_epoch(state.epoch, state.position)
        return order

    def state(self) -> OrderState:
        """The state for ``restore``."""
        return OrderState(self._epoch, self._position)

    def take(self, k: int) -> list[int]:
        """The next ``k`` indices."""
        taken: list[int] = []
        while len(taken) < k:
            end = min(self._position + k - len(taken), self._n)
            taken += self._permutation[self._position : end].tolist()
            self._position = end
            if end == self._n:
                self._start_epoch(self._epoch + 1, 0)
        return taken


def epoch_batches(n: int, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Index batches of ``epochs`` passes over ``n`` items, all of ``batch_size``.

    The rest of an epoch is part of the next epoch's first batch, so nothing is lost between epochs; at the very end,
    the last n · epochs mod batch_size items of the last permutation are left out.

    Raises:
        UserError: there is not one full batch, or there are more than ``MOST_UPDATES``.
    """
    if n * epochs < batch_size:
        raise UserError(
            f"{n} rows in {epochs} epochs do not fill one batch of {batch_size}",
            "no update would be made",
            "lower batch_size, raise epochs, or give more data",
        )
    if n * epochs // batch_size > MOST_UPDATES:
        raise UserError(
            f"{n} rows in {epochs} epochs are more than {MOST_UPDATES:,} updates",
            "this is more than any stage needs",
            "lower epochs",
        )
    order = PromptOrder(n, seed)
    return [order.take(batch_size) for _ in range(n * epochs // batch_size)]
