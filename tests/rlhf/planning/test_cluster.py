"""The cluster's text."""

from __future__ import annotations

import pytest

from rlhf.errors import UserError
from rlhf.planning.cluster import GPUS, parse_cluster


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
