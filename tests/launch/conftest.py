"""The Ray and the process groups that the tests of actors and of training use."""

from tests.actors.conftest import any_ray, local_ray
from tests.rlhf.conftest import crews, one_rank, two_ranks

__all__ = ["any_ray", "crews", "local_ray", "one_rank", "two_ranks"]
