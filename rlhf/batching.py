"""Which sample goes to which rank or engine, and which samples share one packed forward pass.

The rule behind all of it: every rank does the same number of forward and backward passes, by construction. With ZeRO
each pass is a set of collective calls, and one pass too few on one rank is a hang, not an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MicroBatches = list[list[int]]
"""Sample indices of each packed forward pass of one rank."""


def balance(lengths: Sequence[int] | np.ndarray, parts: int) -> list[list[int]]:
    """Divide samples into ``parts`` whose sizes differ by at most one and whose token counts are close.

    Longest first, each to the lightest part that still has room (Graham 1969, with a cap on the count).
    """
    base, extra = divmod(len(lengths), parts)
    room = [base + (p < extra) for p in range(parts)]
    load = [0] * parts
    members: list[list[int]] = [[] for _ in range(parts)]
    for i in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        part = min((p for p in range(parts) if len(members[p]) < room[p]), key=lambda p: (load[p], p))
        members[part].append(i)
        load[part] += int(lengths[i])
    return [sorted(m) for m in members]


def pack(
    indices: Sequence[int], lengths: Sequence[int] | np.ndarray, budget: int, padded: bool = False
) -> MicroBatches:
    """Group samples so that each group has at most ``budget`` tokens: first fit, longest first.

    A sample longer than the budget gets a group of its own. ``padded`` samples count as many tokens as the longest of
    their group, which is its first.
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

    A rank that needs fewer splits its fullest group; a rank that has nothing left to split gets an empty group, which
    runs a forward pass over one dummy token and contributes nothing.
    """
    chosen = [int(lengths[i]) for i in indices]
    shares = [[indices[j] for j in part] for part in balance(chosen, ranks)]
    packed = [pack(share, lengths, budget, padded) for share in shares]
    count = max(1, *(len(p) for p in packed))
    return [_grow(groups, count) for groups in packed]


def _grow(groups: MicroBatches, count: int) -> MicroBatches:
    groups = [list(g) for g in groups]
    while len(groups) < count:
        fullest = max(range(len(groups)), key=lambda g: len(groups[g]), default=None)
        if fullest is None or len(groups[fullest]) < 2:
            groups.append([])
        else:
            half = len(groups[fullest]) // 2
            groups.append(groups[fullest][half:])
            groups[fullest] = groups[fullest][:half]
    return groups


def minibatches(samples: int, count: int, epochs: int, seed: Sequence[int]) -> list[list[int]]:
    """The samples of every update: ``epochs`` passes, each a new permutation cut into ``count`` equal minibatches.

    Depends on nothing but its arguments, so every rank computes the same, whatever the number of ranks.
    """
    size = samples // count
    updates = []
    for epoch in range(epochs):
        order = np.random.default_rng([*seed, epoch]).permutation(samples)
        updates += [sorted(order[m * size : (m + 1) * size].tolist()) for m in range(count)]
    return updates


def share_prompts(chosen: Sequence[int], engines: int) -> list[list[int]]:
    """Places in ``chosen`` that each engine answers: samples of one prompt stay together, runs of prompts go in turn.

    An engine keeps what it computed for a prompt and uses it for the prompt's other samples (the prefix cache). With
    fewer runs than engines, samples go in turn instead: an engine with nothing to do saves nothing.
    """
    changes = [i > 0 and chosen[i] != chosen[i - 1] for i in range(len(chosen))]
    run = np.cumsum(changes) if sum(changes) + 1 >= engines else np.arange(len(chosen))
    return [np.flatnonzero(run % engines == engine).tolist() for engine in range(engines)]
