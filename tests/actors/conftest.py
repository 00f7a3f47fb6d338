"""One Ray for the tests of a worker here, and actors that are defined in a test's file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from actors.cluster import cluster


@pytest.fixture(scope="package")
def any_ray() -> Iterator[None]:
    """A Ray of our own."""
    with cluster(None, has_gpus=False):
        yield


@pytest.fixture(scope="module")
def local_ray(any_ray: None, request: pytest.FixtureRequest) -> None:
    """The same; what this file defines travels to its actors, which could not import it."""
    ray.cloudpickle.register_pickle_by_value(request.module)
