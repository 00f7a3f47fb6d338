"""The cluster of a plan: nodes of equal GPUs, parsed from one line of text."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from rlhf.errors import UserError
from rlhf.gpus import GB, GPUS, GPUType

EXAMPLE = "nodes=2,gpus=8,gpu=h100-80"
MOST = {"nodes": 10_000, "gpus": 1_000}
"""Largest cluster that is planned: more than any has."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster of equal nodes with equal GPUs."""

    nodes: int
    gpus: int
    """GPUs per node."""
    gpu: str
    """Key of the GPU type in ``GPUS``."""
    network: float
    """Bytes per second, one way, from a GPU to another node."""

    @property
    def type(self) -> GPUType:
        """Properties of the GPU type."""
        return GPUS[self.gpu]

    @property
    def total(self) -> int:
        """Total number of GPUs."""
        return self.nodes * self.gpus

    def link(self, nodes: int) -> float:
        """Bytes per second between GPUs that span ``nodes`` nodes."""
        return self.type.link if nodes <= 1 else min(self.network, self.type.link)


def parse_cluster(text: str) -> Cluster:
    """Parse a cluster: ``nodes=2,gpus=8,gpu=h100-80``, optionally ``network=50``: GB/s from a GPU to another node.

    Raises:
        UserError: the text has another form, or names an unknown GPU.
    """
    given: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in ("nodes", "gpus", "gpu", "network") or key in given:
            fault = "is given twice" if key in given else "is none of nodes=, gpus=, gpu= and network="
            raise UserError(f"--cluster {text!r}: {part.strip()!r} {fault}", fix=f"for example --cluster {EXAMPLE}")
        given[key] = value
    if missing := [key for key in ("gpus", "gpu") if key not in given]:
        raise UserError(f"--cluster {text!r}: {missing[0]}= is missing", fix=f"for example --cluster {EXAMPLE}")
    name = _gpu_name(given["gpu"])
    network = _network(given["network"], text) * GB if "network" in given else GPUS[name].network
    nodes, gpus = _count("nodes", given.get("nodes", "1"), text), _count("gpus", given["gpus"], text)
    return Cluster(nodes=nodes, gpus=gpus, gpu=name, network=network)


def _count(key: str, value: str, text: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 7 and 1 <= int(value) <= MOST[key]):
        raise UserError(
            f"--cluster {text!r}: {key} = {value!r} is not a whole number from 1 to {MOST[key]}",
            fix=f"for example --cluster {EXAMPLE}",
        )
    return int(value)


def _network(value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        fix = f"GB/s from one GPU to another node, for example --cluster {EXAMPLE},network=50"
        raise UserError(f"--cluster {text!r}: network = {value!r} is not a number above 0", fix=fix)
    return number


def _gpu_name(name: str) -> str:
    low = name.lower()
    if low in GPUS:
        return low
    near = difflib.get_close_matches(low, GPUS, n=1, cutoff=0.3)
    guess = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"there is no GPU type {name!r}", fix=f"{guess}known: {', '.join(GPUS)}")
