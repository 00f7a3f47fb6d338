"""Tells the errors that a process raises because its device, its memory or a peer failed from bugs.

After such a failure the process cannot go on, but a new one can: a CUDA error, for example, makes every later call of
the same process fail. A bug would be repeated by the new process too, and so would a wrong installation.
Classes are recognised by name, because the controller does not import PyTorch.
"""

from __future__ import annotations

import re

TORCH_ERRORS = frozenset(
    {
        *("AcceleratorError", "OutOfMemoryError", "CudaError"),
        *("DistError", "DistBackendError", "DistNetworkError", "DistStoreError"),
    }
)
"""PyTorch's classes for errors of a device, and of the connections between ranks."""
RUNTIME_ERROR = re.compile(
    r"(?:CUDA|HIP|cuDNN|NCCL|Triton) error|(?:CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_|(?:CUDA|HIP) out of memory|"
    r"can(?:no|')t allocate memory|gloo|NCCL|ProcessGroup|Watchdog caught collective|"
    r"Connection (?:closed|reset) by peer|Broken pipe|Socket Timeout",
    re.IGNORECASE,
)
"""The same failures as text of a ``RuntimeError``, the class in C++ extensions, gloo and Triton."""
REPEATABLE = re.compile(
    r"no kernel image is available|invalid device (?:function|ordinal)|CUDA error: invalid (?:configuration )?argument|"
    r"driver version is insufficient|unsupported toolchain|ncclInvalid(?:Usage|Argument)|invalid usage|Duplicate GPU|"
    r"doesn't have \w+ built in",
    re.IGNORECASE,
)
"""Errors of the same classes that a new process would repeat: of the installation, or of a call's arguments."""


def is_process_fault(error: BaseException) -> bool:
    """Whether a new process may succeed where this error was raised."""
    text = str(error)
    if REPEATABLE.search(text):
        return False
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, RuntimeError) and RUNTIME_ERROR.search(text):
        return True
    names = {each.__name__ for each in type(error).__mro__ if each.__module__.partition(".")[0] == "torch"}
    return not names.isdisjoint(TORCH_ERRORS)
