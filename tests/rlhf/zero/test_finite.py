from __future__ import annotations

import math

import pytest
import torch

from rlhf.errors import MachineryError
from rlhf.zero.finite import FiniteCheck, require_finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_tensor_with_other_numbers_is_named_with_their_count(bad: float) -> None:
    require_finite("logprobs", torch.tensor([1.0, -2.0, 0.0], requires_grad=True))
    require_finite("logprobs", torch.zeros(0))
    with pytest.raises(MachineryError, match="during the update, in logprobs: 2 of 3"):
        require_finite("logprobs", torch.tensor([bad, 1.0, bad]))


def test_counts_add_up_over_micro_batches_and_ranks_until_they_are_read() -> None:
    check = FiniteCheck()
    for values in ([0.0, 1.0], [math.nan], []):
        tensor = torch.tensor(values)
        assert check.watch("values", tensor) is tensor
        check.watch("logprobs", torch.ones(4))
    with pytest.raises(MachineryError, match="in values: 2 of 6"):
        check.require(lambda counts: 2 * counts)  # another rank with the same numbers
    check.require(lambda counts: counts)  # nothing is left of them


def test_numbers_of_another_rank_stop_this_one() -> None:
    check = FiniteCheck()
    check.watch("values", torch.ones(2))
    with pytest.raises(MachineryError, match="in values: 1 of 5"):
        check.require(lambda counts: counts + torch.tensor([1, 3]))
