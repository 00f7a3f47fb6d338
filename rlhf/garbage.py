"""Python's garbage collector, paused while a process imports its libraries."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collection() -> Iterator[None]:
    """Context without garbage collection; what lives at its end is examined again only when the process ends.

    PyTorch, transformers and DeepSpeed bring a million objects that last as long as the process. Examining them again
    and again, while they come, is a quarter of the CPU time of their import (``gc.freeze`` in Python's manual).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # some libraries report objects that are alive at the very end
        if was_enabled:
            gc.enable()
