"""Files of ``torch.save`` in memory, as segments that are views of the saved tensors: nothing is copied or written.

DeepSpeed saves and loads through a checkpoint engine. ``MemoryFiles`` takes the place of the one that writes and reads
files, so that DeepSpeed decides what a checkpoint holds, and loads it, without a copy on disk or in shared memory.
"""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from copy import copy
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from numpy.typing import NDArray
from torch import Tensor

from rlhf.storage.write_errors import writing

Segments = Sequence[NDArray[np.uint8]]
"""Content of a file, as arrays of bytes, end to end."""
Files = Mapping[str, Segments]
"""File name in the checkpoint's folder → content."""
SMALL = 2**16
"""Tensors below this many bytes are copied, so that a file has few segments."""


class MemoryFiles(CheckpointEngine):
    """DeepSpeed's checkpoint engine that keeps files in memory, in ``files``, by their names without a folder."""

    def __init__(self, files: Files | None = None) -> None:
        super().__init__()
        self.files: dict[str, Segments] = dict(files or {})

    def create(self, info: CheckpointCommitInfo) -> None:
        """Do nothing: there is no folder."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: there is no folder."""

    def save(self, state_dict: Any, path: str) -> None:
        """Keep one file."""
        self.files[Path(path).name] = save_to_segments(state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Load one file, whose tensors are copies. It is trusted: a pickle."""
        return torch.load(SegmentFile(self.files[Path(path).name]), map_location=map_location, weights_only=False)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Do nothing: all files are complete."""
        return True


def save_to_segments(state: Any) -> Segments:
    """The file that ``torch.save`` writes for a state, as segments.

    Tensors in host memory are not copied: the segments are valid until the tensors change. Of a view, only its own
    elements are saved, and not its whole storage.
    """
    sink, checks = _Sink(), torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)  # checkpoints have SHA-256 sums; these would read all tensors
    try:
        torch.save(sink.as_saved(state), sink)
    finally:
        torch.serialization.set_crc32_options(checks)
    return sink.segments()


def file_bytes(content: Segments) -> int:
    """Size of a file."""
    return sum(segment.nbytes for segment in content)


def write_segments(content: Segments, path: Path) -> None:
    """Write a file."""
    with writing(path), path.open("wb") as file:
        for segment in content:
            file.write(segment.data)


class SegmentFile(io.RawIOBase):
    """Reads segments as one file."""

    def __init__(self, content: Segments) -> None:
        super().__init__()
        self._segments, self._ends = content, list(accumulate(segment.nbytes for segment in content))
        self._place = 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read in any order."""
        return True

    def tell(self) -> int:
        """The current position."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to another position, and return it."""
        end = self._ends[-1] if self._ends else 0
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: end}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current position on; returns the number of bytes, which is less only at the end."""
        target, done = memoryview(buffer).cast("B"), 0
        while done < len(target) and (index := bisect_right(self._ends, self._place)) < len(self._segments):
            segment = self._segments[index]
            start = self._place - self._ends[index] + segment.nbytes
            count = min(len(target) - done, segment.nbytes - start)
            target[done : done + count] = segment[start : start + count].data
            done, self._place = done + count, self._place + count
        return done


class _Sink:
    """File object for ``torch.save``, which passes a tensor's own memory to ``write``: it is recognised by address."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[int, int], NDArray[np.uint8]] = {}
        """(address, bytes) of each large tensor → its memory."""
        self._segments: list[NDArray[np.uint8]] = []
        self._small = bytearray()
        """Bytes since the last large tensor."""

    def as_saved(self, state: Any) -> Any:
        """The state with each tensor in host memory, as a storage of its own."""
        if isinstance(state, Tensor):
            return self._as_own_storage(state.detach().to("cpu").contiguous())
        if isinstance(state, dict):
            saved = copy(state)  # keeps what else it holds, such as the versions of a state_dict
            saved.update((key, self.as_saved(value)) for key, value in state.items())
            return saved
        if type(state) in (list, tuple):
            return type(state)(self.as_saved(value) for value in state)
        return state

    def _as_own_storage(self, tensor: Tensor) -> Tensor:
        if tensor.nbytes < SMALL:
            return tensor.clone()
        memory = tensor.view(-1).view(torch.uint8).numpy()
        self._tensors[memory.ctypes.data, memory.nbytes] = memory
        return torch.from_numpy(memory).view(tensor.dtype).view(tensor.shape)

    def write(self, data: Any) -> int:
        """Take the file's next bytes."""
        given = np.frombuffer(data, np.uint8)
        own = self._tensors.get((given.ctypes.data, given.nbytes))
        if own is None:
            self._small += given.data
        else:
            self._end_segment()
            self._segments.append(own)
        return given.nbytes

    def flush(self) -> None:
        """Do nothing: nothing is buffered elsewhere."""

    def _end_segment(self) -> None:
        if self._small:
            self._segments.append(np.frombuffer(bytes(self._small), np.uint8))
            self._small.clear()

    def segments(self) -> Segments:
        """The file's content."""
        self._end_segment()
        return tuple(self._segments)
