"""Data-sheet figures of GPU types: memory, arithmetic throughput and bandwidth."""

from __future__ import annotations

import re
from dataclasses import dataclass

MIB = 2**20
GB = 10**9
TERA = 10**12


@dataclass(frozen=True, kw_only=True)
class GPUType:
    """Data-sheet figures of one GPU, none of them measured by this project."""

    memory: int
    """Bytes that the driver reports (nvidia-smi), with error correction on."""
    bfloat16: float
    """FLOP/s of dense matrix products in bfloat16."""
    float32: float
    """FLOP/s in float32 without tensor cores, because TF32 is off in this project."""
    bandwidth: float
    """Bytes per second from device memory."""
    link: float
    """Bytes per second and direction to another GPU of the node: NVLink, or PCIe without NVLink."""
    network: float
    """Bytes per second and direction to another node, as in the maker's reference system; ``network=`` overrides it."""
    host: float
    """Bytes per second and direction to host memory, over PCIe."""
    source: str
    """The data sheet."""


def _gpu(
    mib: int, bfloat16: float, float32: float, gb: float, link: float, network: float, host: float, source: str
) -> GPUType:
    """Build a ``GPUType`` from the units of data sheets: MiB, TFLOP/s, GB/s."""
    return GPUType(
        memory=mib * MIB,
        bfloat16=bfloat16 * TERA,
        float32=float32 * TERA,
        bandwidth=gb * GB,
        link=link * GB,
        network=network * GB,
        host=host * GB,
        source=source,
    )


GPUS: dict[str, GPUType] = {
    "a10-24": _gpu(23028, 125, 31.2, 600, 32, 3, 32, "NVIDIA A10 datasheet"),
    "l4-24": _gpu(23034, 121, 30.3, 300, 32, 3, 32, "NVIDIA L4 datasheet"),
    "rtx4090-24": _gpu(24564, 165, 82.6, 1008, 32, 3, 32, "NVIDIA Ada GPU architecture whitepaper, appendix A"),
    "l40s-48": _gpu(46068, 362, 91.6, 864, 32, 12.5, 32, "NVIDIA L40S datasheet"),
    "a100-40": _gpu(40960, 312, 19.5, 1555, 300, 25, 32, "NVIDIA A100 datasheet; network: DGX A100"),
    "a100-80": _gpu(81920, 312, 19.5, 2039, 300, 25, 32, "NVIDIA A100 datasheet; network: DGX A100"),
    "h100-80": _gpu(81559, 989, 67, 3350, 450, 50, 64, "NVIDIA H100 datasheet (SXM); network: DGX H100"),
    "h200-141": _gpu(143771, 989, 67, 4800, 450, 50, 64, "NVIDIA H200 datasheet (SXM); network: DGX H200"),
    "b200-180": _gpu(183359, 2250, 75, 8000, 900, 50, 64, "NVIDIA HGX B200 datasheet; network: DGX B200"),
}
"""Type and memory in GB → figures. FLOP/s without sparsity."""


NEAR = 0.05
"""Largest relative difference between a GPU's memory and its type's."""


def gpu_named(name: str, memory: int | None = None) -> str | None:
    """The key in ``GPUS`` of a GPU, from its name in the driver or Ray and its memory in bytes.

    Without ``memory``, of several types that fit the name the one with the least memory. None if no type fits.
    """
    name = name.lower().replace("rtx ", "rtx")
    words = re.split(r"[^a-z0-9]+", name)
    matches = {key: gpu for key, gpu in GPUS.items() if key.partition("-")[0] in words}
    if memory is not None:
        return next((key for key, gpu in matches.items() if abs(memory - gpu.memory) <= NEAR * gpu.memory), None)
    exact = [key for key in matches if key in name]
    return min(exact or matches, key=lambda key: GPUS[key].memory, default=None)


OTHER_CHIPS = ("pcie", "nvl", "mig")
"""Words in the driver's name of slower variants or partitions of an H100 or H200, whose FLOP/s are not in ``GPUS``."""


def peak_flops(name: str, memory: int, dtype: str) -> float | None:
    """FLOP/s of dense matrix products on a GPU, given the driver's name and memory in bytes; None if unknown.

    In float32 those without tensor cores, because TF32 is off in this project.
    """
    key = gpu_named(name, memory)
    if key is None or (key.startswith("h") and any(word in name.lower() for word in OTHER_CHIPS)):
        return None
    return GPUS[key].bfloat16 if dtype == "bfloat16" else GPUS[key].float32
