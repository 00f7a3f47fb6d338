"""Assigns samples to ranks, engines and packed micro-batches.

Every rank gets the same number of micro-batches. With ZeRO each forward and backward pass makes collective calls, so
that a rank with one pass fewer than the others would hang them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

MicroBatches = list[list[int]]
"""Sample indices of each packed forward pass on one rank."""


def balance(lengths: Sequence[int] | np.ndarray, parts: int) -> list[list[int]]:
    """Divide samples into ``parts`` parts of nearly equal token counts, with sample counts that differ by at most one.

    Assigns samples longest first, each to the part with the fewest tokens that still has room (Graham 1969, with a cap
    on the count).
    """
    base, extra = divmod(len(lengths), parts)
    room = [base + (p < extra) for p in range(parts)]
    members: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0, part) for part in range(parts) if room[part]]  # a heap of the parts that still have room
    for i in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        load, part = heappop(loads)
        members[part].append(i)
        if len(members[part]) < room[part]:
            heappush(loads, (load + int(lengths[i]), part))
    return [sorted(m) for m in members]


def pack(
    indices: Sequence[int], lengths: Sequence[int] | np.ndarray, budget: int, padded: bool = False
) -> MicroBatches:
    """Group samples so that each group has at most ``budget`` tokens: first fit, longest first.

    A sample longer than the budget forms a group by itself. With ``padded``, every sample counts as many tokens as the
    longest of its group, which is the first.
    """
    groups: MicroBatches = []
    loads: list[int] = []
    for i in sorted(indices, key=lambda i: (-int(lengths[i]), i)):
        size = int(lengths[i])
        sizes = (int(lengths[group[0]]) if padded else size for group in groups)
        slot = next((g for g, more in enumerate(sizes) if loads[g] + more <= budget), None)
        if slot is None:
            groups.append([i])
            loads.append(size)
        else:
            loads[slot] += int(lengths[groups[slot][0]]) if padded else size
            groups[slot].append(i)
    return groups


def plan(
    indices: Sequence[int], lengths: Sequence[int] | np.ndarray, ranks: int, budget: int, padded: bool = False
) -> list[MicroBatches]:
    """The micro-batches of every rank, the same number on each.

    A rank that needs fewer micro-batches splits its largest ones; if every one holds a single sample, it adds empty
    ones, each of which runs a forward pass over one dummy token and contributes nothing.
    """
    chosen = [int(lengths[i]) for i in indices]
    shares = [[indices[j] for j in part] for part in balance(chosen, ranks)]
    packed = [pack(share, lengths, budget, padded) for share in shares]
    count = max(1, *(len(p) for p in packed))
    return [_split_to_count(groups, count) for groups in packed]


def count_rows(samples: int, length: int, ranks: int, budget: int) -> int:
    """Number of micro-batches of each rank in ``plan``, for samples of equal length, without planning them."""
    in_a_row = max(1, budget // length)
    return max(1, -(-samples // (ranks * in_a_row)))


def _split_to_count(groups: MicroBatches, count: int) -> MicroBatches:
    groups = [list(g) for g in groups]
    while len(groups) < count:
        largest = max(range(len(groups)), key=lambda g: len(groups[g]), default=None)
        if largest is None or len(groups[largest]) < 2:
            groups.append([])
        else:
            half = len(groups[largest]) // 2
            groups.append(groups[largest][half:])
            groups[largest] = groups[largest][:half]
    return groups


@dataclass(kw_only=True)
class Unit:
    """Blocks that are scored together, with the sums of their samples and tokens."""

    blocks: list[int] = field(default_factory=list)
    samples: int = 0
    tokens: int = 0

    def add(self, block: int, samples: int, tokens: int) -> None:
        """Add a block."""
        self.blocks.append(block)
        self.samples += samples
        self.tokens += tokens


class UnitBuilder:
    """Joins blocks to units of scoring that nearly fill their rows, or have the given number of samples.

    A unit holds neighbouring blocks of one stream, so that the units depend only on each stream's own order; what
    remains of the streams at the end is joined in the order of their names.
    """

    def __init__(self, tokens: int, samples: int) -> None:
        """Begin without blocks; ``tokens`` or ``samples`` fill a unit."""
        self.tokens, self.samples = tokens, samples
        self._open: dict[str, Unit] = {}
        self._sizes: dict[int, tuple[int, int]] = {}
        """Samples and tokens of each block that is in no full unit."""

    def add(self, block: int, samples: int, tokens: int, stream: str) -> Unit | None:
        """Add a block; returns the unit if it is full, as it is when another block of its mean size does not fit."""
        unit, self._sizes[block] = self._open.setdefault(stream, Unit()), (samples, tokens)
        unit.add(block, samples, tokens)
        count = len(unit.blocks)
        if unit.tokens * (count + 1) <= self.tokens * count and unit.samples < self.samples:
            return None
        for each in unit.blocks:
            del self._sizes[each]
        return self._open.pop(stream)

    def rest(self) -> list[Unit]:
        """Take the units of all remaining blocks; only the last one may be far from full."""
        blocks = [block for stream in sorted(self._open) for block in self._open.pop(stream).blocks]
        units = [unit for block in blocks if (unit := self.add(block, *self._sizes[block], ""))]
        last = [self._open.pop(stream) for stream in list(self._open)]
        self._sizes.clear()
        return units + last


def minibatches(samples: int, count: int, epochs: int, seed: Sequence[int]) -> list[list[int]]:
    """The samples of every update: in each epoch a new permutation, cut into ``count`` equal minibatches.

    A pure function of its arguments: every rank computes the same result, for any number of ranks.
    """
    size = samples // count
    updates = []
    for epoch in range(epochs):
        order = np.random.default_rng([*seed, epoch]).permutation(samples)
        updates += [sorted(order[m * size : (m + 1) * size].tolist()) for m in range(count)]
    return updates


def share_prompts(chosen: Sequence[int], engines: int) -> list[list[int]]:
    """Indices into ``chosen`` that each engine generates for: round robin over runs of equal prompts.

    Samples of one prompt stay on one engine, which reuses the prompt's prefix cache. With fewer runs than engines the
    samples themselves are dealt round robin, so that no engine is idle.
    """
    prompts = np.asarray(chosen)
    run = np.cumsum(np.diff(prompts, prepend=prompts[:1]) != 0)
    engine = (run if run.max(initial=-1) + 1 >= engines else np.arange(len(prompts))) % engines
    shares = np.split(np.argsort(engine, kind="stable"), np.cumsum(np.bincount(engine, minlength=engines))[:-1])
    return [share.tolist() for share in shares]
