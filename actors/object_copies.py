"""Objects of Ray's store that have copies on several nodes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError


def first_available(copies: Sequence[ray.ObjectRef], seconds: float) -> Any:
    """Return the value of the first of these copies of an object that is not lost.

    Raises:
        RayError: no copy is available within ``seconds``.
    """
    end = time.monotonic() + seconds
    for copy in copies[:-1]:
        with suppress(RayError):
            return ray.get(copy, timeout=max(0.0, end - time.monotonic()) / 2)
    return ray.get(copies[-1], timeout=max(0.0, end - time.monotonic()))


def store_here(*values: Any) -> tuple[Any, ...]:
    """Return the arguments and a marker: as a Ray task, this stores copies of them on the node on which it runs."""
    return (*values, None)
