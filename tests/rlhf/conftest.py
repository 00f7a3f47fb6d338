"""Process groups of one and of two ranks, for the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rlhf.ranks import Crew


@pytest.fixture(scope="session")
def one_rank() -> Iterator[Crew]:
    """A group of one."""
    crew = Crew(1)
    yield crew
    crew.stop()


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Crew]:
    """A group of two."""
    crew = Crew(2)
    yield crew
    crew.stop()


@pytest.fixture
def crews(one_rank: Crew, two_ranks: Crew) -> dict[int, Crew]:
    """The groups by their number of ranks."""
    return {1: one_rank, 2: two_ranks}
