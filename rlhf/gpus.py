"""What is known of each type of GPU: memory, arithmetic and bandwidth, from its maker's data sheet."""

from __future__ import annotations

import re
from dataclasses import dataclass

MIB = 2**20
GB = 10**9
TERA = 10**12


@dataclass(frozen=True, kw_only=True)
class GPUType:
    """What one GPU offers, as its maker's data sheet says. Nothing here was measured by this project."""

    memory: int
    """Bytes that the driver shows (nvidia-smi), error correction on."""
    bfloat16: float
    """FLOP/s of dense matrix products in bfloat16."""
    float32: float
    """FLOP/s in float32, outside the tensor cores: TF32 is off here."""
    bandwidth: float
    """Bytes a second from its own memory."""
    link: float
    """Bytes a second, one way, to another GPU of the node: NVLink, or PCIe where there is none."""
    network: float
    """Bytes a second, one way, to another node, as its maker's reference system has it; ``network=`` sets another."""
    host: float
    """Bytes a second, one way, to the host's memory, over PCIe."""
    source: str
    """The data sheet."""


def _gpu(
    mib: int, bfloat16: float, float32: float, gb: float, link: float, network: float, host: float, source: str
) -> GPUType:
    """A row of the table in the units of data sheets: MiB, TFLOP/s, GB/s."""
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
"""Type and memory in GB → what it offers. FLOP/s without sparsity."""


NEAR = 0.05
"""Part by which a GPU's memory may differ from its type's."""


def gpu_named(name: str, memory: int | None = None) -> str | None:
    """The type that a driver or Ray calls so, of so many bytes; where these are not told, the smallest of that name."""
    said = name.lower().replace("rtx ", "rtx")
    words = re.split(r"[^a-z0-9]+", said)
    alike = {known: kind for known, kind in GPUS.items() if known.partition("-")[0] in words}
    if memory is not None:
        return next((known for known, kind in alike.items() if abs(memory - kind.memory) <= NEAR * kind.memory), None)
    exact = [known for known in alike if known in said]
    return min(exact or alike, key=lambda known: GPUS[known].memory, default=None)


OTHER_CHIPS = ("pcie", "nvl", "mig")
"""Words in a driver's name for a part, or a slower sibling, of an H100 or H200, whose own rate is not in ``GPUS``."""


def peak_flops(name: str, memory: int, dtype: str) -> float | None:
    """FLOP/s of dense matrix products on the GPU that a driver calls so, of so many bytes; None where it is not known.

    Of float32 those outside the tensor cores, since TF32 is off here.
    """
    known = gpu_named(name, memory)
    if known is None or (known.startswith("h") and any(word in name.lower() for word in OTHER_CHIPS)):
        return None
    return GPUS[known].bfloat16 if dtype == "bfloat16" else GPUS[known].float32
