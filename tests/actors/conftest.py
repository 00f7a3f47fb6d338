"""Fixtures: one local Ray per test process, and actors that are defined in a test's file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from actors.cluster import cluster


@pytest.fixture(scope="package")
def any_ray() -> Iterator[None]:
    """A local Ray."""
    with cluster(None):
        yield


@pytest.fixture(scope="module")
def local_ray(any_ray: None, request: pytest.FixtureRequest) -> None:
    """A local Ray whose actors get the test file's classes by value, because they cannot import that file."""
    ray.cloudpickle.register_pickle_by_value(request.module)
