"""Parsing of the cluster's text."""

from __future__ import annotations

import pytest

from launch.plan.cluster import parse_cluster
from rlhf.errors import UserError
from rlhf.gpus import GPUS, peak_flops


def test_nodes_gpus_and_type() -> None:
    cluster = parse_cluster("nodes=2,gpus=8,gpu=H100-80")
    assert (cluster.nodes, cluster.gpus, cluster.gpu, cluster.total) == (2, 8, "h100-80", 16)
    assert cluster.network == 50e9
    assert parse_cluster("gpu=a100-40, gpus=4").nodes == 1
    assert parse_cluster("gpus=1,gpu=l4-24,network=12.5").network == 12.5e9


def test_links_within_and_between_nodes() -> None:
    cluster = parse_cluster("nodes=2,gpus=8,gpu=h100-80,network=25")
    assert (cluster.link(1), cluster.link(2)) == (450e9, 25e9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is none of"),
        ("nodes", "is none of"),
        ("nodes=2,gpus=8", "gpu= is missing"),
        ("gpu=h100-80", "gpus= is missing"),
        ("gpus=8,gpus=4,gpu=h100-80", "given twice"),
        ("nodes=0,gpus=8,gpu=h100-80", "nodes = '0'"),
        ("nodes=2,gpus=eight,gpu=h100-80", "gpus = 'eight'"),
        ("nodes=2,gpus=1e3,gpu=h100-80", "gpus = '1e3'"),
        ("nodes=99999999999,gpus=1,gpu=h100-80", "nodes = "),
        ("nodes=10001,gpus=8,gpu=h100-80", "from 1 to 10000"),
        ("nodes=2,gpus=1001,gpu=h100-80", "from 1 to 1000"),
        ("gpus=8,gpu=h100-80,network=fast", "network = 'fast'"),
        ("gpus=8,gpu=h100-80,network=-1", "network = '-1'"),
        ("gpus=8,gpu=h10-80", r"did you mean h100-80\?"),
        ("gpus=8,gpu=zzz", "known: a10-24"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_cluster(text)


def test_every_type_has_the_memory_of_its_name_and_a_source() -> None:
    for name, gpu in GPUS.items():
        assert gpu.memory / 1e9 == pytest.approx(float(name.rpartition("-")[2]), rel=0.08), name
        assert gpu.bfloat16 > gpu.float32 and gpu.link >= gpu.network and gpu.source


@pytest.mark.parametrize(
    ("name", "mib", "dtype", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 81008, "bfloat16", 989),  # NVIDIA's data sheets: dense, without sparsity
        ("NVIDIA H100 80GB HBM3", 81008, "float32", 67),
        ("NVIDIA H200", 143156, "bfloat16", 989),
        ("NVIDIA A100-SXM4-80GB", 81153, "bfloat16", 312),
        ("NVIDIA A100-PCIE-40GB", 40326, "float32", 19.5),
        ("NVIDIA L40S", 45589, "bfloat16", 362),
        ("NVIDIA H100 PCIe", 81008, "bfloat16", None),  # 756 by its own data sheet
        ("NVIDIA H100 NVL", 95830, "bfloat16", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9728, "bfloat16", None),
        ("NVIDIA H800", 81008, "bfloat16", None),
        ("Tesla T4", 15360, "float32", None),
    ],
)
def test_a_peak_is_that_of_the_very_chip_or_not_known(name: str, mib: int, dtype: str, tflops: float | None) -> None:
    assert peak_flops(name, mib * 2**20, dtype) == (None if tflops is None else tflops * 1e12)
