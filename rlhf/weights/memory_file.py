"""Files in memory, which a process writes and others of its host read, without a place in any folder."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class MemoryFile:
    """A file without a place in any folder, which other processes of this host open through this one's descriptor.

    Its memory stays until it is closed, or its process ends, however it ends, and its mappings here and in readers are
    kept: content that replaces other content takes no system call. The kernel would clear the pages of a new file
    first, and a virtual machine may have to get them from its host. In ``/dev/shm`` a container often has only 64 MiB.
    """

    def __init__(self) -> None:
        self.name = f"rlhf-weights-{secrets.token_hex(8)}"
        self._file = os.fdopen(os.memfd_create(self.name), "r+b", buffering=0)
        self._memory = np.empty(0, dtype=np.uint8)

    @property
    def path(self) -> str:
        """Path by which other processes open it."""
        return f"/proc/{os.getpid()}/fd/{self._file.fileno()}"

    def write(self, parts: Sequence[NDArray[np.uint8]]) -> None:
        """Replace its content by these bytes, end to end; what lies behind them, of longer content, stays.

        Raises:
            OSError: a limit of this process leaves no room for them; the content is as it was.
        """
        size, begin = sum(part.size for part in parts), 0
        if size > self._memory.size:
            os.posix_fallocate(self._file.fileno(), 0, size)  # a page missing later would be a signal, not an error
            self._memory = np.frombuffer(mmap.mmap(self._file.fileno(), size), dtype=np.uint8)
        for part in parts:
            self._memory[begin : begin + part.size] = part
            begin += part.size

    def close(self) -> None:
        """Release its memory, as far as no reader has it mapped."""
        self._memory = self._memory[:0].copy()
        self._file.close()


def is_open(path: str, name: str) -> bool:
    """Whether the path leads to the file of this name, and not to nothing or another file."""
    try:
        return os.readlink(path).startswith(f"/memfd:{name} ")
    except OSError:
        return False


def mapped(path: str) -> Tensor:
    """(bytes,) memory of a file, uint8, in which what is written to it later appears too.

    It may be written to, which changes neither the file nor what other readers see.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return torch.empty(0, dtype=torch.uint8)
        memory = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.frombuffer(memory, dtype=torch.uint8)
