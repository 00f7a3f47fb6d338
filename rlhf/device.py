"""Everything that differs between CPU and GPU, in one place."""

from __future__ import annotations

import os
import resource
from typing import Any, Literal

import torch

from rlhf.config.schema import RolloutConfig

Device = Literal["cpu", "cuda"]


def collective_backend(device: Device) -> str:
    """The torch.distributed backend for tensors on the device."""
    return "nccl" if device == "cuda" else "gloo"


def weight_transfer_backend(device: Device, same_gpu: bool) -> str:
    """How weights reach the engine.

    CUDA IPC on a shared GPU, NCCL between GPUs, shared memory between CPU processes.
    """
    if device == "cpu":
        return "shared_memory"
    return "ipc" if same_gpu else "nccl"


def prepare_process(device: Device, threads: int) -> torch.device:
    """Set this process up for computing, and say where its tensors live. Ray shows each process only its own GPU."""
    if device == "cuda":
        torch.cuda.set_device(0)
        torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32: log-probabilities are compared at 1e-4
        return torch.device("cuda", 0)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(threads)
    return torch.device("cpu")


def engine_environment(device: Device, memory_gib: float, backend: str | None) -> dict[str, str]:
    """Environment variables that vLLM reads before it starts; ``backend`` is how weights reach it, if they do."""
    shared = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    if backend == "ipc":
        shared["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # CUDA IPC handles travel pickled, between our own processes
    if device == "cuda":
        return shared
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    # Threads bound to all cores: vLLM's default leaves one idle, and unbound threads take twice the time.
    memory = str(max(1, round(memory_gib)))
    return {**shared, "VLLM_CPU_KVCACHE_SPACE": memory, "VLLM_CPU_OMP_THREADS_BIND": cores}


def engine_arguments(device: Device, config: RolloutConfig, sleeps: bool) -> dict[str, Any]:
    """Arguments of vLLM's engine that only one device has, or needs."""
    if device == "cuda":
        return {"gpu_memory_utilization": config.gpu_memory_fraction, "enable_sleep_mode": sleeps}
    # A prompt prefilled in parts rewinds its seeded generator, which CPU generators cannot do: the engine would die.
    return {"enable_chunked_prefill": False}


def peak_memory_gib(device: Device) -> float:
    """Largest memory that this process has held: on the GPU where it uses one, else resident in the host."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
