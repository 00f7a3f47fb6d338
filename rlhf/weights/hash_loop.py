"""The loop over elements of ``element_hash.py``, which numba compiles when this module is imported.

numba keeps what it has compiled beside this file or in the user's cache; where it can write to neither, or what it has
kept is not this loop, each process compiles, in less than a second. Only processes that hash should import this: numba
takes half a second.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from llvmlite.binding import ffi
from numpy.typing import NDArray

_SIGNATURES = [f"int64({bits}[::1], int64, int64, int64)" for bits in ("int32", "int16")]


def _loop(bits: NDArray[np.signedinteger], minus_zero: int, factor: int, other: int) -> np.int64:
    total = np.int64(0)
    for index in range(bits.size):
        mixed = np.int64(bits[index])
        mixed = np.int64(0) if mixed == minus_zero else mixed
        mixed *= factor
        mixed ^= mixed >> 31
        mixed *= other
        total += mixed ^ (mixed >> 29)
    return total


def compiled() -> Callable[[NDArray[np.signedinteger], int, int, int], np.int64]:
    """The loop in machine code: the sum of mixed bits (n,), given those of -0.0, which count as 0, and factors."""
    try:
        kept = numba.njit(_SIGNATURES, nogil=True, cache=True)(_loop)
        if all(_same(kept, dtype) for dtype in (np.int32, np.int16)):
            return kept
    except Exception:  # nothing can be written, or what was kept is damaged, which numba reports in many ways
        pass
    return numba.njit(_SIGNATURES, nogil=True)(_loop)


def _same(kept: Callable[..., np.int64], dtype: type[np.signedinteger]) -> bool:
    """Whether the code that was kept is that of the loop, and not of an earlier one."""
    given = np.array([3, -2, -8], dtype=dtype), -8, 2**62 + 1, 2**61 + 7
    with np.errstate(over="ignore"):
        return bool(kept(*given) == _loop(*given))


# When an engine starts, vLLM looks into the objects of all modules, and takes for their attributes what they answer to
# ``__dict__``. This one of llvmlite's answers every name with a function of its library.
ffi.lib._fntab["__dict__"] = {}
hash_loop = compiled()
