"""Tests that failures of a device, of memory and of a peer are told from bugs, by PyTorch's own classes and texts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributed

from rlhf.recovery.diagnosis import DEVICE_CAUSES, Cause, diagnose, named_cause
from rlhf.recovery.facts import Facts
from rlhf.recovery.process_faults import is_process_fault

HINTS = """
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""
"""What PyTorch adds to every error of CUDA."""
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, {}, NCCL version 2.27.7\n{}"
REMOTE = NCCL.format(
    "remote process exited or there was a network error",
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.\n"
    "Last error:\nsocketProgress: Connection closed by remote peer node-3<48762>",
)
SYSTEM = NCCL.format(
    "unhandled system error (run with NCCL_DEBUG=INFO for details)",
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.",
)
WATCHDOG = (
    "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, NumelIn=1, "
    "NumelOut=1, Timeout(ms)=600000) ran for 600029 milliseconds before timing out."
)
CUDA_OOM = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.12 GiB is free."
)
CPU_OOM = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "17179869184 bytes. Error code 12 (Cannot allocate memory)"
)
Raised = Callable[[str], BaseException]
ACCELERATOR: Raised = torch.AcceleratorError
BACKEND: Raised = torch.distributed.DistBackendError


def array_of(gib: int) -> BaseException:
    """The error with which NumPy refuses an array that is too large."""
    with pytest.raises(MemoryError) as caught:
        np.empty(gib * 2**30, dtype=np.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (torch.cuda.OutOfMemoryError(CUDA_OOM), Cause.GPU_MEMORY),
        (RuntimeError("CUDA error: out of memory" + HINTS), Cause.GPU_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), Cause.GPU_MEMORY),
        (ACCELERATOR("CUDA error: uncorrectable ECC error encountered" + HINTS), Cause.GPU_ECC),
        (ACCELERATOR("CUDA error: an illegal memory access was encountered" + HINTS), Cause.GPU_ACCESS),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), Cause.GPU_ACCESS),
        (ACCELERATOR("CUDA error: device-side assert triggered" + HINTS), Cause.GPU_ASSERT),
        (ACCELERATOR("CUDA error: unspecified launch failure" + HINTS), Cause.GPU),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"), Cause.GPU),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), Cause.GPU),
        (BACKEND(REMOTE), Cause.NCCL),
        (BACKEND(SYSTEM), Cause.NCCL),
        (BACKEND(NCCL.format("unhandled cuda error", "ncclUnhandledCudaError: Call to CUDA failed.")), Cause.NCCL),
        (BACKEND(WATCHDOG), Cause.PEER),
        (torch.distributed.DistStoreError("wait timeout after 300000ms, keys: /default_pg/0//cuda//0"), Cause.PEER),
        (torch.distributed.DistNetworkError("The client socket has timed out after 300000ms"), Cause.PEER),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.7]:4321"), Cause.PEER),
        (RuntimeError(CPU_OOM), Cause.HOST_MEMORY),
        (array_of(10**6), Cause.HOST_MEMORY),
        (MemoryError(), Cause.HOST_MEMORY),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_failure_of_the_device_of_memory_or_of_a_peer_is_one_of_the_process(
    error: BaseException, cause: Cause | None
) -> None:
    assert is_process_fault(error)
    first = (str(error).splitlines() or [""])[0]
    text = f"policy rank 0 failed in update: {type(error).__name__}: {first}"
    assert named_cause(text) is cause
    assert diagnose(Facts(alive=True, exit_text=f"{text}\nTraceback:\n{error}")).cause is (cause or Cause.UNKNOWN)


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("division by zero"),
        ValueError("CUDA error is only a word here"),
        KeyError("gloo"),
        RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
        ACCELERATOR("CUDA error: no kernel image is available for execution on the device" + HINTS),
        ACCELERATOR("CUDA error: invalid configuration argument" + HINTS),
        RuntimeError("Distributed package doesn't have NCCL built in"),
        BACKEND(NCCL.format("invalid usage", "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.")),
        AssertionError("Torch not compiled with CUDA enabled"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_a_bug_or_a_wrong_installation_would_be_repeated_by_any_process(error: BaseException) -> None:
    assert not is_process_fault(error)


def test_device_causes_are_those_of_gpus_and_their_network() -> None:
    assert {cause for cause in Cause if cause.name.startswith(("GPU", "NCCL"))} == DEVICE_CAUSES
