"""Bugs that people have shipped, put into the code one at a time: the checks of the healthy code must fail by them.

Each test names the number that betrays the bug. Expected numbers of the healthy code are in ``algorithms/oracles.py``,
``algorithms/test_optimum.py``, ``roles/test_invariance.py`` and ``zero/test_engine.py``, whose checks run here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from rlhf.algorithms.advantages import group_advantages
from rlhf.errors import CanaryError
from rlhf.zero.process_group import Rank
from tests.rlhf.algorithms import test_optimum as optimum
from tests.rlhf.algorithms import test_oracles as oracles
from tests.rlhf.algorithms.tabular import BANDIT, END, STOPPING, TOKEN_CLASS, Trained, in_class, train
from tests.rlhf.mutation import mutated
from tests.rlhf.ranks import Crew
from tests.rlhf.roles import test_invariance as invariance
from tests.rlhf.tiny import tiny_model
from tests.rlhf.zero import test_engine as engine

ADVANTAGES = "rlhf.algorithms.advantages"
LOSSES = "rlhf.algorithms.losses"
REWARDS = "rlhf.algorithms.rewards"
K1 = "return old_logprobs - ref_logprobs"
KL_LOSS = "return value - ratio * x * (logprobs - logprobs.detach())"
LAST = "rewards[kept[is_last]] +="


def trained_on_classes(budget: Any = optimum.CLASS_BUDGET) -> Trained:
    """Problem B at β = .05."""
    return train(TOKEN_CLASS, optimum.algorithm_for_classes(0.05), budget)


def trained_on_lengths() -> Trained:
    """Problem C."""
    return train(STOPPING, optimum.algorithm_for_lengths(), optimum.STOPPING_BUDGET)


def trained_on_answers(budget: Any = optimum.BANDIT_BUDGET) -> Trained:
    """Problem A by Dr. GRPO, the KL in the loss."""
    return train(BANDIT, optimum.algorithm_for_answers("dr_grpo"), budget)


def refuses(check: Callable[..., None], *arguments: Any) -> None:
    """The check fails as a check does, and not by an error on the way."""
    with pytest.raises(AssertionError):
        check(*arguments)


def test_k2_in_the_reward_is_caught() -> None:
    """q goes to 1 instead of .5378: k2 punishes what is rarer than in the reference as much as what is commoner."""
    with mutated(REWARDS, K1, "return 0.5 * (old_logprobs - ref_logprobs) ** 2"):
        trained = trained_on_classes()
        refuses(oracles.test_k1_is_the_kl_of_the_reward, "kl/trl/k1")
    refuses(optimum.assert_best_class, trained, optimum.CLASS_OPTIMA[0])
    assert in_class(trained.policy) > 0.97


def test_k3_in_the_reward_is_caught() -> None:
    """q goes to 1 instead of .5378, and score − β Σ k does not stop varying."""
    with mutated(REWARDS, K1, "return np.exp(ref_logprobs - old_logprobs) - 1 + old_logprobs - ref_logprobs"):
        trained = trained_on_classes()
    refuses(optimum.assert_best_class, trained, optimum.CLASS_OPTIMA[0])
    assert in_class(trained.policy) > 0.95
    assert trained.metrics[-1]["objective/rlhf_reward_std"] > 0.5


def test_the_kl_with_the_wrong_sign_is_caught() -> None:
    """The policy is paid for leaving the reference: q goes to 1, and J falls below 0 (.387 is the best)."""
    with mutated(REWARDS, "-kl_coef * kl, 0.0", "kl_coef * kl, 0.0"):
        trained = trained_on_classes()
        refuses(oracles.test_token_rewards, "reward/torchtune/get_rewards_ppo")
    refuses(optimum.assert_best_class, trained, optimum.CLASS_OPTIMA[0])
    assert in_class(trained.policy) > 0.97 and TOKEN_CLASS.objective(trained.policy, 0.05) < 0


def test_the_score_on_the_token_before_the_last_is_caught() -> None:
    """To stop is no longer paid for: hazards .05 to .2 where .37 to .97 are right."""
    with mutated(REWARDS, LAST, "rewards[kept[is_last] - 1] +="):
        trained = trained_on_lengths()
        refuses(oracles.test_token_rewards, "reward/torchtune/get_rewards_ppo")
    refuses(optimum.assert_best_lengths, trained)
    assert trained.policy[3:6, END].max() < 0.3
    assert trained.metrics[-1]["objective/rlhf_reward_std"] > 0.3


def test_the_score_on_a_place_after_the_last_token_is_caught() -> None:
    """As on a pad token: it is lost. Nothing is learnt, and hazards stay at the reference's .1."""
    with mutated(REWARDS, LAST, "np.append(rewards, 0.0)[kept[is_last] + 1] +="):
        trained = trained_on_lengths()
        refuses(oracles.test_token_rewards, "reward/torchtune/get_rewards_ppo")
    refuses(optimum.assert_best_lengths, trained)
    np.testing.assert_allclose(trained.policy[:, END], 0.1, atol=0.05)


def test_an_end_token_outside_the_mask_is_caught() -> None:
    """The score moves to the last token that goes on, and going on is what is learnt: J is −.8, not .68."""
    lost = "return self.rollouts.response_mask & ~np.isin(np.arange(lengths.sum()), np.cumsum(lengths) - 1) & ~self"
    with mutated("rlhf.experience", "return self.rollouts.response_mask & ~self", lost):
        trained = trained_on_lengths()
    refuses(optimum.assert_best_lengths, trained)
    assert trained.policy[3:6, END].max() < 0.2 and STOPPING.objective(trained.policy, 0.2) < 0
    assert trained.metrics[-1]["objective/rlhf_reward_std"] > 0.3


def test_an_end_token_left_out_of_the_policy_loss_is_caught() -> None:
    """A response of the end token alone no longer changes its probability, .1."""
    ends = "np.cumsum(sequences.response_lengths[np.asarray(samples)]) - 1"
    kept = "kept = experience.response_mask[index]"
    with mutated("rlhf.roles.policy", kept, f"{kept} & ~np.isin(np.arange(len(index)), {ends})"):
        refuses(optimum.test_the_end_token_itself_is_trained)
        assert optimum.hazard_after_one_early_end() == pytest.approx(0.1)


def test_a_kl_loss_with_the_gradient_of_k3_is_caught() -> None:
    """The forward KL's: J is .679 instead of .7078."""
    with mutated(LOSSES, KL_LOSS, "return x.expm1() - x - x.expm1() * (logprobs - logprobs.detach())"):
        trained = trained_on_answers()
    refuses(optimum.assert_best_answers, trained)
    assert BANDIT.objective(trained.policy, 0.2) < 0.69


def test_a_kl_loss_of_k1_is_caught() -> None:
    """Its expected gradient is 0: the policy forgets the reference, J is .600."""
    with mutated(LOSSES, KL_LOSS, "return -x + (logprobs - logprobs.detach())"):
        trained = trained_on_answers()
        refuses(oracles.test_k3_is_the_value_of_the_kl_loss, "kl/nemo/k3")
    refuses(optimum.assert_best_answers, trained)
    assert BANDIT.objective(trained.policy, 0.2) < 0.65


def test_importance_weights_upside_down_are_caught() -> None:
    """An engine with other probabilities: J is .697, not .707; and 1.6487 stands where .6065 should."""
    with mutated("rlhf.algorithms.importance", "difference = old - engine", "difference = engine - old"):
        trained = trained_on_answers(optimum.BIASED_BUDGET)
        refuses(oracles.test_policy_loss_with_importance_weights, "ppo/nemo/is")
    refuses(optimum.assert_best_answers, trained)
    assert BANDIT.objective(trained.policy, 0.2) < 0.7


def test_old_logprobs_at_another_temperature_are_caught() -> None:
    """By the canaries, on the first step whose policy is no longer uniform."""
    policy = "rlhf.roles.policy"
    with (
        mutated(policy, "temperature = self.recipe.rollout.temperature", "temperature = 1.0"),
        pytest.raises(CanaryError, match=r"(?s)logprob_gap_mean = .* at step 1,.*first_pass/ratio"),
    ):
        trained_on_classes(replace(optimum.CLASS_BUDGET, temperature=0.7))


def test_a_ratio_without_its_exponential_is_caught() -> None:
    """It is 0 on the first pass, where it must be 1."""
    ratio = "ratio = (log_ratio if samples is None else sequence_log_ratio(log_ratio, samples))"
    with mutated(LOSSES, f"{ratio}.exp()", ratio):
        refuses(oracles.test_policy_loss, "ppo/nemo/clip")
        with pytest.raises(CanaryError, match="first_pass/ratio = 0 at step 0"):
            trained_on_classes()


def test_whitening_by_the_mean_over_the_mask_and_beyond_is_caught() -> None:
    """The mean of 1 to 5 is 3; of those in the mask it is 2."""
    with mutated(ADVANTAGES, "(chosen - chosen.mean())", "(chosen - values.mean())"):
        refuses(oracles.test_mean_and_variance_inside_the_mask, "stat/torchtune/var")


def test_gaps_counted_in_the_decay_are_caught() -> None:
    """.9 · .5 is taken twice over a gap of one: .405 stands where .9 should."""
    skipping = "advantage = discounted_sums(r + gamma * next_v - v, sample, gamma * lam)"
    counting = (
        "every = np.zeros(len(rewards)); every[response_mask] = r + gamma * next_v - v; "
        "advantage = discounted_sums(every, sample_of_token(response_lengths), gamma * lam)[response_mask]"
    )
    with mutated(ADVANTAGES, skipping, counting):
        refuses(oracles.test_gae_skips_a_gap, "gae/miles/gap1")
        advantages, _ = oracles.gae(oracles.ORACLES["gae/miles/gap1"].inputs)
        assert advantages[0] == pytest.approx(0.405)


def leave_one_out() -> None:
    """Each reward less the mean of the others: 1, 2, 6 → 1 − 4, 2 − 3.5, 6 − 1.5."""
    totals, group = np.array([1, 2, 6], dtype=np.float32), np.zeros(3, dtype=np.int64)
    assert group_advantages("rloo", totals, group, np.ones(3, dtype=bool)).tolist() == [-3.0, -1.5, 4.5]


def test_a_mean_that_does_not_leave_one_out_is_caught() -> None:
    """−2, −1, 3: a third smaller. The optimum does not move by it where the KL is in the reward."""
    leave_one_out()
    with mutated(ADVANTAGES, "above = above * len(group) / max(len(group) - 1, 1)", "above = above * 1"):
        refuses(leave_one_out)


Bug = tuple[str, str, str]
ONE_NORMALISER = "self.engine.backward(loss(micro_batch) * (self.world // self.tensor_ranks / max(1, count)))"
OWN_COUNTS: Bug = (
    "rlhf.zero.engine",
    ONE_NORMALISER,
    "own = len(getattr(micro_batch, 'weights', micro_batch)); "
    "self.engine.backward(loss(micro_batch) / max(1, own) / len(micro_batches))",
)
"""Each micro-batch divided by its own tokens, then a mean of means."""
OWN_WHITENING: Bug = (
    ADVANTAGES,
    "whitened[response_mask] = (chosen - chosen.mean()) / np.sqrt(chosen.var(ddof=1) + 1e-8)",
    "import torch; parts = np.array_split(chosen, torch.distributed.get_world_size()); "
    "whitened[response_mask] = np.concatenate([(p - p.mean()) / np.sqrt(p.var(ddof=1) + 1e-8) for p in parts])",
)
"""As many parts of the batch as ranks, each whitened by itself."""


def with_bugs(rank: Rank, bugs: tuple[Bug, ...], function: Callable[..., Any], *arguments: Any) -> Any:
    """The function on this rank, with bugs in the rank's own process."""
    with ExitStack() as stack:
        for bug in bugs:
            stack.enter_context(mutated(*bug))
        return function(rank, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama."""
    path = tmp_path_factory.mktemp("model")
    tiny_model(AutoModelForCausalLM, "llama").save_pretrained(path)
    return path


def policy_gradient(crews: dict[int, Crew], folder: Path, split: invariance.Split, *bugs: Bug) -> invariance.Gradients:
    """Of one update of the policy, with bugs on every rank."""
    arguments = ("policy", folder, invariance.recipe(split), split)
    [gradients], _ = crews[split.ranks].run(with_bugs, bugs, invariance.updated, *arguments)[0]
    return gradients


def test_a_normaliser_of_every_micro_batchs_own_is_caught(folder: Path, crews: dict[int, Crew]) -> None:
    """Means of 1, 2 and of 3 to 7 have the mean 3.25; the mean of all is 4. The policy's gradient depends on the split.

    OpenRLHF, tests/test_loss_aggregation.py.
    """
    arguments = (0, [[[1.0, 2], [3, 4, 5, 6, 7]]], 7, 1, engine.PLAIN, "float32")
    [healthy] = crews[1].run(with_bugs, (), engine.train_scale, *arguments)
    [broken] = crews[1].run(with_bugs, (OWN_COUNTS,), engine.train_scale, *arguments)
    assert healthy.norms == pytest.approx([4.0]) and broken.norms == pytest.approx([3.25])
    whole, parts = invariance.Split(), invariance.Split(budget=11)
    expected = policy_gradient(crews, folder, whole)
    invariance.assert_same_gradient(policy_gradient(crews, folder, parts), expected)
    found, alone = (policy_gradient(crews, folder, split, OWN_COUNTS) for split in (parts, whole))
    invariance.assert_same_gradient(alone, expected)  # with one micro-batch there is nothing to get wrong
    refuses(invariance.assert_same_gradient, found, expected)


def test_whitening_on_every_rank_by_itself_is_caught(folder: Path, crews: dict[int, Crew]) -> None:
    """The gradient depends on the number of ranks."""
    alone, both = invariance.Split(), invariance.Split(ranks=2)
    expected = policy_gradient(crews, folder, alone, OWN_WHITENING)
    invariance.assert_same_gradient(expected, policy_gradient(crews, folder, alone))  # one rank sees the whole batch
    invariance.assert_same_gradient(policy_gradient(crews, folder, both), expected)
    refuses(invariance.assert_same_gradient, policy_gradient(crews, folder, both, OWN_WHITENING), expected)


def test_a_bug_that_is_taken_out_again_leaves_nothing() -> None:
    for _ in range(2):
        with mutated(ADVANTAGES, "above = above * len(group) / max(len(group) - 1, 1)", "above = above * 1"):
            refuses(leave_one_out)
        leave_one_out()


def test_a_bug_that_is_not_in_the_source_is_refused() -> None:
    """A change of the source that leaves a bug without its place must be seen."""
    with pytest.raises(AssertionError, match="0 times"), mutated(ADVANTAGES, "no such line", ""):
        pass
    with pytest.raises(AssertionError, match="times in"), mutated(ADVANTAGES, "np.", "numpy."):
        pass
