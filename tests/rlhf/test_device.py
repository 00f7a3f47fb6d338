"""What an engine is told on each kind of device."""

from __future__ import annotations

import pytest

from rlhf.config.schema import RolloutConfig
from rlhf.device import engine_arguments


@pytest.mark.parametrize(
    ("gib", "size"),
    [(1.0, 1_073_741_824), (2.5, 2_684_354_560), (0.5, 536_870_912), (0.1, 107_374_182)],
)
def test_an_engine_on_a_cpu_has_the_cache_of_the_recipe_to_the_byte(gib: float, size: int) -> None:
    """A GiB has 1024³ bytes; vLLM takes a whole number of them."""
    given = engine_arguments("cpu", RolloutConfig(memory_gib=gib, gpu_memory_fraction=0.7), sleeps=False)
    assert given["kv_cache_memory_bytes"] == size and isinstance(given["kv_cache_memory_bytes"], int)
    assert "gpu_memory_utilization" not in given, "a share of the machine's memory would count"


def test_an_engine_on_a_gpu_has_a_share_of_its_memory() -> None:
    given = engine_arguments("cuda", RolloutConfig(memory_gib=0.5, gpu_memory_fraction=0.7), sleeps=True)
    assert given == {"gpu_memory_utilization": 0.7, "enable_sleep_mode": True}
