"""Everything that differs between CPU and GPU, in one place. PyTorch is imported where it is used."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING, Any, Literal

from rlhf.config.schema import RolloutConfig

if TYPE_CHECKING:
    import torch

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
    import torch

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
    cores = sorted(os.sched_getaffinity(0))
    return {
        **shared,
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(memory_gib))),
        # vLLM's default leaves one core idle.
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        # The engine computes in its own process instead of a worker's: one import of vLLM less, some ten seconds.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": str(len(cores)),
    }


def engine_arguments(device: Device, config: RolloutConfig, sleeps: bool) -> dict[str, Any]:
    """Arguments of vLLM's engine that only one device has, or needs."""
    if device == "cuda":
        return {"gpu_memory_utilization": config.gpu_memory_fraction, "enable_sleep_mode": sleeps}
    # A prompt prefilled in parts rewinds its seeded generator, which CPU generators cannot do: the engine would die.
    return {"enable_chunked_prefill": False}


def host_buffer(device: torch.device, size: int) -> torch.Tensor:
    """(size,) bytes of the host's memory, page-locked where a GPU copies to them and from them."""
    import torch

    return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")


def wait_for_device(device: torch.device) -> None:
    """Return when all that was begun on the device is done."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def release_cache(device: torch.device) -> None:
    """Give back to the GPU what PyTorch keeps for this process and does not use, so that others there find room."""
    if device.type == "cuda":
        import torch

        torch.cuda.ipc_collect()
        torch.cuda.empty_cache()


def gpu_of_process(device: Device) -> tuple[str, int] | None:
    """What the driver calls the GPU of this process, and its bytes; None on a CPU."""
    if device != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name(), torch.cuda.get_device_properties().total_memory


def peak_memory_gib(device: Device) -> float:
    """Largest memory that this process has held: on the GPU where it uses one, else resident in the host."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
