"""Ray and process groups for the tests of actors and of training."""

from tests.actors.conftest import any_ray, local_ray
from tests.rlhf.conftest import crews, one_rank, two_ranks

__all__ = ["any_ray", "crews", "local_ray", "one_rank", "two_ranks"]
