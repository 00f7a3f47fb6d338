"""All code that differs between CPU and GPU. PyTorch is imported inside the functions that use it."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rlhf.config.schema import RolloutConfig

if TYPE_CHECKING:
    import torch

Device = Literal["cpu", "cuda"]
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
"""A folder for each of the node's GPUs, also of those that this process does not see."""
SHORT_ATTENTION = 192
"""Longest sequences whose attention a CPU that multiplies bfloat16 computes faster in float32."""


def collective_backend(device: Device) -> str:
    """The torch.distributed backend for tensors on the device."""
    return "nccl" if device == "cuda" else "gloo"


def weight_transfer_backend(device: Device, same_gpu: bool) -> str:
    """The backend of weight transfers: CUDA IPC on a shared GPU, NCCL between GPUs, shared memory between CPUs."""
    if device == "cpu":
        return "shared_memory"
    return "ipc" if same_gpu else "nccl"


def prepare_process(device: Device, threads: int) -> torch.device:
    """Configure PyTorch in this process and return its device, GPU 0: Ray makes only one GPU visible to a process."""
    import torch

    if device == "cuda":
        torch.cuda.set_device(0)
        torch.backends.cuda.matmul.allow_tf32 = False  # log-probabilities in float32 are compared at 1e-4
        torch.set_num_threads(max(threads, _cores_per_gpu()))  # for the optimizer of offloaded states
        return torch.device("cuda", 0)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(threads)
    return torch.device("cpu")


def local_device() -> torch.device:
    """GPU 0 of this process if it sees one, else the CPU: for small models that a command itself runs."""
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _cores_per_gpu() -> int:
    """CPU cores of this process, divided among the node's GPUs, each of which has a process."""
    return len(os.sched_getaffinity(0)) // max(1, len(list(NVIDIA_GPUS.glob("*"))))


def overlaps_collectives(device: Device) -> bool:
    """Whether collectives run beside computation: on GPUs in streams of their own; on a CPU they take its cores."""
    return device == "cuda"


def engine_environment(device: Device, config: RolloutConfig, backend: str | None) -> dict[str, str]:
    """Environment variables that vLLM reads at start; ``backend`` is the weight-transfer backend, if any."""
    shared = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine computes in its actor's process
    }
    if backend == "ipc":
        shared["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # CUDA IPC handles are pickled, between processes of this run
    if device == "cuda":
        return shared
    cores = sorted(os.sched_getaffinity(0))
    return {
        **shared,
        # vLLM's default leaves one core idle.
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "OMP_NUM_THREADS": str(len(cores)),
        # vLLM compiles a part of its sampler even so, in several seconds that no run on a CPU earns back.
        **({"TORCHDYNAMO_DISABLE": "1"} if config.enforce_eager else {}),
    }


def engine_modules(device: Device, publishes: bool) -> tuple[str, ...]:
    """Modules that an engine's process imports: with them vLLM, and its worker, which vLLM imports late.

    Args:
        publishes: whether weights will be published to it; on CPUs it then computes fingerprints by ``compiles_loops``.
    """
    if device == "cuda":
        return ("rlhf.generation.engine", "vllm.v1.worker.gpu_worker")
    hashing = ("rlhf.weights.hash_loop",) if publishes else ()
    return ("rlhf.generation.engine", "vllm.v1.worker.cpu_worker", *hashing)


def prepare_engine_thread(device: Device) -> None:
    """Have PyTorch compute on all cores in the calling thread, from which vLLM is started.

    ``OMP_NUM_THREADS`` has no effect where the process imported PyTorch before it was set, as Ray's workers may have
    done; the number of threads changes the last bits of results.
    """
    if device == "cpu":
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))


def engine_arguments(device: Device, config: RolloutConfig, sleeps: bool) -> dict[str, Any]:
    """Arguments of vLLM's engine that apply to one kind of device only."""
    if device == "cuda":
        return {"gpu_memory_utilization": config.gpu_memory_fraction, "enable_sleep_mode": sleeps}
    return {
        "kv_cache_memory_bytes": int(config.memory_gib * 2**30),
        # A chunked prefill rewinds a request's seeded generator, which CPU generators do not support: vLLM would crash.
        "enable_chunked_prefill": False,
    }


def host_buffer(device: torch.device, size: int) -> torch.Tensor:
    """Allocate (size,) bytes of host memory, page-locked if the device is a GPU."""
    import torch

    return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")


def slice_elements(device: torch.device) -> int:
    """Elements that a chain of elementwise operations computes at a time.

    On a CPU the temporaries (1 MiB in int64) stay in its cache. On a GPU a slice fills the device, and a temporary
    takes 128 MiB.
    """
    return 2**24 if device.type == "cuda" else 2**17


def compiles_loops(values: torch.Tensor) -> bool:
    """Whether numba compiles a loop over such numbers: floating-point numbers of 2 or 4 bytes on a CPU."""
    return values.device.type == "cpu" and values.is_floating_point() and values.element_size() in (2, 4)


def prefers_onednn(values: torch.Tensor) -> bool:
    """Whether oneDNN multiplies such matrices faster than what PyTorch takes: those in float32 on a CPU."""
    import torch

    is_float32 = values.device.type == "cpu" and values.dtype == torch.float32
    return is_float32 and torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu")


def attention_dtype(values: torch.Tensor, length: int) -> torch.dtype:
    """Data type in which PyTorch's kernel computes attention fastest over sequences of ``length`` tokens.

    On a CPU its backward pass in bfloat16 takes two to five times as long as in float32, unless the processor
    multiplies bfloat16 and the sequences are long.
    """
    import torch

    if values.device.type != "cpu" or (length > SHORT_ATTENTION and _multiplies_bfloat16()):
        return values.dtype
    return torch.promote_types(values.dtype, torch.float32)


@cache
def _multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it."""
    import torch

    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def copy_to_device(arrays: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Copy arrays of one dtype in one transfer, for which the host does not wait.

    Shapes: (n,) each → (n,) each, views of one tensor.
    """
    import torch

    joined = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        joined = joined.pin_memory().to(device, non_blocking=True)
    return joined.split([len(array) for array in arrays])


def wait_for_stream(device: torch.device) -> None:
    """Wait until the work submitted to the current stream is complete, so that another thread may read its results."""
    if device.type == "cuda":
        import torch

        torch.cuda.current_stream(device).synchronize()


def wait_for_device(device: torch.device) -> None:
    """Wait until all work submitted to the device is complete."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def release_cache(device: torch.device) -> None:
    """Release PyTorch's cached, unused memory to the GPU for other processes."""
    if device.type == "cuda":
        import torch

        torch.cuda.ipc_collect()
        torch.cuda.empty_cache()


def gpu_of_process(device: Device) -> tuple[str, int] | None:
    """The driver's name of this process's GPU, and its memory in bytes; None on a CPU."""
    if device != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name(), torch.cuda.get_device_properties().total_memory


def peak_memory_gib(device: Device) -> float:
    """Peak memory of this process in GiB: allocated on the GPU if it uses one, else resident in host memory."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
