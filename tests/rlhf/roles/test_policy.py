"""The policy's update on real DeepSpeed ranks does not depend on how the work is divided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.batching import minibatches
from rlhf.config.schema import (
    AlgorithmConfig,
    ModelConfig,
    OptimizerConfig,
    PlacementConfig,
    PPOConfig,
    Recipe,
    RoleConfig,
    RolloutConfig,
)
from rlhf.errors import MachineryError
from rlhf.models.load import load_causal
from rlhf.roles.block_result import join_tokens, token_index
from rlhf.roles.policy import PolicyRole, update_metrics
from rlhf.types import Experience, FinishReason, RolloutBlock, Sequences
from rlhf.zero.process_group import Rank
from tests.rlhf.ranks import Crew
from tests.rlhf.tiny import VOCABULARY, random_sequences, tiny_model

TEMPERATURE, LR, LONGEST = 0.7, 0.1, 8
SIZES = ((3, 5), (1, 4), (6, 1), (2, 7), (4, 3), (5, 6), (2, 2))
"""Seven samples: uneven on two ranks. The longest sequence has 11 tokens."""

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sequence": {"loss_mean": "sequence"},
    "constant": {"loss_mean": "constant"},
    "kl": {"kl_in": "loss", "kl_coef": 0.2},
    "entropy": {"entropy_coef": 0.3},
    "dual clip": {"dual_clip": 1.5},
    "clip": {"clip_range": 0.5, "clip_range_high": 1.5},
    "gspo": {"name": "gspo", "clip_range": 0.3, "clip_range_high": 0.5, "kl_coef": 0.2},
    "cispo": {"name": "cispo", "clip_range_high": 0.5, "kl_in": "reward"},
    "everything": {
        "loss_mean": "sequence",
        "kl_in": "loss",
        "kl_coef": 0.2,
        "entropy_coef": 0.3,
        "dual_clip": 1.8,
        "clip_range": 0.1,
        "clip_range_high": 0.5,
        "minibatches": 2,
    },
}
"""Options of the loss, each alone and all at once; importance weights and masks are in every batch. β is the step's, as
the batch has it, and not the recipe's: it may be adapted."""
KL_COEF = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with an untied head."""
    path = tmp_path_factory.mktemp("policy")
    tiny_model(AutoModelForCausalLM, "llama").save_pretrained(path)
    return path


def recipe(
    ranks: int = 1,
    stage: int = 1,
    budget: int = 1000,
    schedule: Any = "constant",
    shared: int = 1,
    steps: int = 1,
    momentum: float = 0.0,
    **algorithm: Any,
) -> Recipe:
    """Adam without momentum and with ε = 1: its step is smooth in the gradient, so small differences stay small."""
    optimizer = OptimizerConfig(lr=LR, schedule=schedule, betas=(momentum, momentum), eps=1.0, max_grad_norm=0.0)
    role = RoleConfig(ranks=ranks, sequence_parallel=shared, zero_stage=stage, micro_batch_tokens=budget)
    return Recipe(
        name="test",
        model=ModelConfig(),
        rollout=RolloutConfig(temperature=TEMPERATURE, max_response_length=LONGEST),
        algorithm=AlgorithmConfig(**{"epochs": 3, **algorithm}),
        ppo=PPOConfig(steps=steps, batch_size=len(SIZES), optimizer=optimizer),
        placement=PlacementConfig(policy=role),
    )


def block(sequences: Sequences, mask: np.ndarray) -> RolloutBlock:
    samples, tokens = len(sequences), int(sequences.response_lengths.sum())
    return RolloutBlock(
        sequences=sequences,
        logprobs=np.zeros(tokens, dtype=np.float32),
        response_mask=mask,
        prompt_ids=np.arange(samples),
        weight_versions=np.zeros(samples, dtype=np.int64),
        finish_reasons=np.full(samples, FinishReason.STOP, dtype=np.int32),
        seeds=np.arange(samples),
        cached_tokens=np.zeros(samples, dtype=np.int32),
    )


def experience(order: list[int] | None = None, kl_coef: float = KL_COEF) -> Experience:
    """A batch with ratios around 1, some clipped; ``order`` shuffles its samples.

    The mask has gaps and leaves a whole sample out; what is outside it is NaN. Some importance weights are 0.
    """
    whole = random_sequences(*SIZES)
    order = list(range(len(SIZES))) if order is None else order
    index = token_index(whole, order)
    random = np.random.default_rng(5)
    tokens = int(whole.response_lengths.sum())
    old = -np.log(VOCABULARY) + random.normal(size=tokens)
    advantages, mask = random.normal(size=tokens), random.random(tokens) < 0.9
    reference = old + random.normal(size=tokens)
    importance = np.clip(random.normal(1, 0.7, size=tokens), 0, 2)
    mask[token_index(whole, [4])] = False

    def array(values: np.ndarray) -> np.ndarray:
        return np.where(mask, values, np.nan)[index].astype(np.float32)

    return Experience(
        rollouts=block(Sequences.pack((whole.prompt(i), whole.response(i)) for i in order), mask[index]),
        scores=np.zeros(len(order), dtype=np.float32),
        old_logprobs=array(old),
        ref_logprobs=array(reference),
        advantages=array(advantages),
        importance_weights=array(importance),
        response_mask=mask[index],
        kl_coef=kl_coef,
    )


@dataclass(frozen=True)
class Updated:
    """Metrics and weights after an update, and the learning rate of the next one."""

    metrics: dict[str, float]
    weights: dict[str, np.ndarray]
    next_rate: float = 0.0


def update(rank: Rank, folder: Path, recipe: Recipe, batch: Experience) -> Updated:
    """One step of PPO on this rank."""
    role = PolicyRole(recipe, str(folder), rank)
    metrics = role.update(batch, step=0)
    weights = {name: tensor.numpy() for name, tensor in role.engine.full_state(role.lm)}
    return Updated(metrics, weights, role.engine.engine.get_lr()[0])


def one_by_one(lm: Any, batch: Experience, samples: list[int]) -> list[dict[str, torch.Tensor]]:
    """log π_new, entropy and the batch's numbers for each sample's tokens inside the mask."""
    sequences, found = batch.rollouts.sequences, []
    for i in samples:
        tokens = torch.tensor([*sequences.prompt(i), *sequences.response(i)], dtype=torch.long)
        begin, place = int(sequences.prompt_lengths[i]), token_index(sequences, [i])
        logprobs = (lm(tokens[None]).logits[0, begin - 1 : -1] / TEMPERATURE).log_softmax(-1)
        kept = torch.from_numpy(batch.response_mask[place])
        names = ("old_logprobs", "ref_logprobs", "advantages", "importance_weights")
        arrays = {name: torch.from_numpy(getattr(batch, name)[place])[kept] for name in names}
        new = logprobs[torch.arange(len(tokens) - begin), tokens[begin:]]
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        found.append({"new": new[kept], "entropy": entropy[kept], **arrays})
    return found


def average(how: str, per_sample: list[torch.Tensor]) -> torch.Tensor:
    """The mean over all tokens, of the samples' means, or of their sums over the maximum length."""
    some = [values for values in per_sample if len(values)]
    if how == "token":
        return torch.cat(some).mean()
    return torch.stack([v.mean() if how == "sequence" else v.sum() / LONGEST for v in some]).mean()


def plain_losses(algorithm: AlgorithmConfig, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The loss as in the papers, and an update's metrics, for one minibatch."""
    policy, kl, tokens = [], [], []
    for row in rows:
        ratio, advantage = (row["new"] - row["old_logprobs"]).exp(), row["advantages"]
        token_ratio, low = ratio, -math.inf if algorithm.name == "cispo" else 1 - algorithm.clip_low
        if algorithm.name == "gspo" and len(ratio):  # GSPO-token, eq. 14 of the paper
            ratio = ratio.detach().prod() ** (1 / len(ratio)) * row["new"].exp() / row["new"].detach().exp()
        within = ratio.clamp(low, 1 + algorithm.clip_high)
        gain = torch.minimum(ratio * advantage, within * advantage)
        binds = within * advantage < ratio * advantage
        if algorithm.name == "cispo":
            gain, binds = within.detach() * advantage * row["new"], ratio > 1 + algorithm.clip_high
        if algorithm.dual_clip is not None:
            floor = algorithm.dual_clip * advantage
            binds |= (advantage < 0) & (gain < floor)
            gain = torch.where(advantage < 0, torch.maximum(gain, floor), gain)
        to_reference = (row["ref_logprobs"] - row["new"]).exp() - 1 - (row["ref_logprobs"] - row["new"])
        policy.append(-gain * row["importance_weights"])
        kl.append(token_ratio * to_reference * row["importance_weights"])
        tokens.append(torch.stack([ratio, token_ratio.log().square() / 2, binds.float(), row["entropy"]]))
    how = algorithm.averaging
    losses = {"policy": average(how, policy), "kl": average(how, kl)}
    ratio, approxkl, clipfrac, entropy = torch.cat(tokens, dim=1).detach().mean(1)
    loss = losses["policy"] - algorithm.entropy_coef * average(how, [row["entropy"] for row in rows])
    loss = loss + (KL_COEF * losses["kl"] if algorithm.kl_in == "loss" else 0)
    return {
        "loss": loss,
        "loss/policy_avg": losses["policy"],
        "loss/kl_avg": losses["kl"],
        "val/ratio": ratio,
        "policy/approxkl_avg": approxkl,
        "policy/clipfrac_avg": clipfrac,
        "policy/entropy_avg": entropy,
    }


def plain_update(
    folder: Path, batch: Experience, algorithm: AlgorithmConfig, rates: Sequence[float] = (LR,) * 9
) -> tuple[Updated, list[dict[str, float]]]:
    """The same update without packing, micro-batches, chunks or DeepSpeed, and the metrics of each update."""
    lm = load_causal(folder, ModelConfig())
    plan, rows = minibatches(len(batch.rollouts), algorithm.minibatches, algorithm.epochs, [0, 0]), []
    for samples, rate in zip(plan, rates, strict=False):
        terms = plain_losses(algorithm, one_by_one(lm, batch, samples))
        lm.zero_grad()
        terms.pop("loss").backward()
        norm = torch.cat([p.grad.flatten() for p in lm.parameters()]).norm()
        rows.append({name: value.item() for name, value in {**terms, "policy/grad_norm": norm}.items()})
        with torch.no_grad():
            for p in lm.parameters():
                p -= rate * p.grad / (p.grad.abs() + 1)
    metrics = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return Updated(metrics, {name: tensor.numpy() for name, tensor in lm.state_dict().items()}), rows


def assert_same(one: Updated, other: Updated) -> None:
    """Compare weights to 1e-5 of the largest in their tensor, and common metrics to 1e-5."""
    for name in one.metrics.keys() & other.metrics.keys() - {"memory/policy_gib", "perf/model_tflops"}:
        assert one.metrics[name] == pytest.approx(other.metrics[name], rel=1e-5, abs=1e-6), name
    assert one.weights.keys() == other.weights.keys()
    for name, weight in other.weights.items():
        scale = np.abs(weight).max()
        np.testing.assert_allclose(one.weights[name], weight, rtol=1e-5, atol=1e-5 * scale, err_msg=name)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Updated]:
    """Reference results of three epochs with each option."""
    return {
        name: plain_update(folder, experience(), recipe(**options).algorithm)[0] for name, options in OPTIONS.items()
    }


PLACES = [
    (1, 0, 1000),
    (1, 1, 11),
    (1, 1, 20),
    (1, 3, 11),
    (2, 0, 11),
    (2, 1, 1000),
    (2, 1, 20),
    (2, 2, 11),
    (2, 3, 11),
]
SINGLE = [name for name in OPTIONS if name not in ("plain", "everything")]


@pytest.mark.parametrize(
    ("option", "ranks", "stage", "budget"),
    [(option, *place) for option in ("plain", "everything") for place in PLACES]
    + [(option, *place) for option in SINGLE for place in ((1, 1, 20), (2, 2, 11))],
)
def test_three_updates_are_the_plain_ones_on_any_ranks_stage_and_budget(
    option: str, ranks: int, stage: int, budget: int, folder: Path, expected: dict[str, Updated], crews: dict[int, Crew]
) -> None:
    for updated in crews[ranks].run(update, folder, recipe(ranks, stage, budget, **OPTIONS[option]), experience()):
        assert_same(updated, expected[option])
        assert updated.metrics.keys() > expected[option].metrics.keys()  # all are compared
    assert 0.05 < updated.metrics["policy/clipfrac_avg"] < 0.95  # the clip affects the result


@pytest.mark.parametrize(
    ("option", "stage", "budget"),
    [("plain", 1, 1000), ("everything", 0, 20), ("everything", 2, 11), ("plain", 3, 20), ("gspo", 1, 20)],
)
def test_three_updates_are_the_plain_ones_where_ranks_share_rows(
    option: str, stage: int, budget: int, folder: Path, expected: dict[str, Updated], two_ranks: Crew
) -> None:
    made = recipe(2, stage, budget, shared=2, **OPTIONS[option])
    for updated in two_ranks.run(update, folder, made, experience()):
        assert_same(updated, expected[option])


def test_the_updates_moved_the_weights_far_enough_to_tell(folder: Path, expected: dict[str, Updated]) -> None:
    before = load_causal(folder, ModelConfig()).state_dict()
    moved = {name: np.abs(weight - before[name].numpy()).max() for name, weight in expected["plain"].weights.items()}
    assert min(moved.values()) > 1e-4
    more = replace(experience(), advantages=1.001 * experience().advantages)
    with pytest.raises(AssertionError):
        assert_same(plain_update(folder, more, recipe().algorithm)[0], expected["plain"])


@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "plain"])
def test_every_option_makes_a_difference_that_would_be_seen(option: str, expected: dict[str, Updated]) -> None:
    with pytest.raises(AssertionError):
        assert_same(Updated({}, expected[option].weights), Updated({}, expected["plain"].weights))


def test_importance_weights_make_a_difference_that_would_be_seen(folder: Path, expected: dict[str, Updated]) -> None:
    unweighted = replace(experience(), importance_weights=np.ones_like(experience().importance_weights))
    with pytest.raises(AssertionError):
        assert_same(plain_update(folder, unweighted, recipe().algorithm)[0], expected["plain"])


def test_the_logged_rate_is_that_of_the_steps_last_update(folder: Path, one_rank: Crew) -> None:
    """The schedule is three updates from LR to 0."""
    [updated] = one_rank.run(update, folder, recipe(schedule="linear"), experience())
    assert updated.metrics["lr"] == pytest.approx(LR / 3)
    assert updated.metrics["policy/updates"] == 3
    assert updated.metrics["policy/tokens"] == 3 * experience().response_mask.sum()


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_order_of_samples_does_not_matter(
    ranks: int, folder: Path, expected: dict[str, Updated], crews: dict[int, Crew]
) -> None:
    shuffled = experience(order=[4, 0, 6, 2, 5, 1, 3])
    for updated in crews[ranks].run(update, folder, recipe(ranks, 1, 20), shuffled):
        assert_same(updated, expected["plain"])


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 3)])
def test_a_step_that_goes_too_far_ends_early_and_the_next_has_the_rate_that_it_would_have(
    ranks: int, stage: int, folder: Path, crews: dict[int, Crew]
) -> None:
    """Of five updates the third is the first to find the policy beyond the target: it is made, and is the last.

    The batch is the policy's own and its steps are small, so that it begins at a distance of 0 and only moves away.
    Of the run's two steps this is the first: the rate, which ends at 0, is half way there after it.
    """
    fresh = experience()
    lm = load_causal(folder, ModelConfig())
    with torch.no_grad():
        rows = one_by_one(lm, replace(fresh, response_mask=np.ones_like(fresh.response_mask)), list(range(len(SIZES))))
    own = torch.cat([row["new"] for row in rows]).numpy()
    fresh = replace(fresh, old_logprobs=own, advantages=fresh.advantages / 50)
    options = {"epochs": 5}
    rates = [LR * (1 - done / 10) for done in range(5)]
    _, passes = plain_update(folder, fresh, recipe(**options).algorithm, rates)
    distance = [row["policy/approxkl_avg"] for row in passes]
    assert distance[0] < 1e-9 < distance[1] < distance[2]
    target = (distance[1] + distance[2]) / 2
    ended, _ = plain_update(folder, fresh, recipe(**options).algorithm, rates[:3])
    stopping = recipe(ranks, stage, 11, "linear", steps=2, target_kl=target, **options)
    for updated in crews[ranks].run(update, folder, stopping, fresh):
        assert updated.metrics["policy/updates"] == 3
        assert_same(updated, ended)
        assert updated.metrics["lr"] == pytest.approx(rates[2])
        assert updated.next_rate == pytest.approx(LR / 2)


def test_a_step_that_stays_near_makes_all_its_updates(
    folder: Path, one_rank: Crew, expected: dict[str, Updated]
) -> None:
    [updated] = one_rank.run(update, folder, recipe(target_kl=1e6), experience())
    assert updated.metrics["policy/updates"] == 3
    assert_same(updated, expected["plain"])


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
def test_a_batch_without_a_token_changes_nothing(ranks: int, stage: int, folder: Path, crews: dict[int, Crew]) -> None:
    nothing = replace(experience(), response_mask=np.zeros_like(experience().response_mask))
    before = load_causal(folder, ModelConfig()).state_dict()
    for updated in crews[ranks].run(update, folder, recipe(ranks, stage, 20, **OPTIONS["everything"]), nothing):
        for name, weight in before.items():
            np.testing.assert_array_equal(updated.weights[name], weight.numpy(), err_msg=name)
        assert updated.metrics == {"policy/updates": 0.0, "policy/tokens": 0.0}  # a ratio of 0 would be a false alarm


@pytest.mark.parametrize("empty", [0, 1])
@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 2)])
def test_a_minibatch_without_a_token_changes_nothing(
    empty: int, ranks: int, stage: int, folder: Path, crews: dict[int, Crew]
) -> None:
    """Adam's first step is the same with any momentum, which would make a second step without a gradient."""
    batch, options = experience(), {"epochs": 1, "schedule": "linear", "momentum": 0.9}
    kept = token_index(batch.rollouts.sequences, minibatches(len(SIZES), 2, 1, [0, 0])[1 - empty])
    mask = np.zeros_like(batch.response_mask)
    mask[kept] = batch.response_mask[kept]
    half = replace(batch, response_mask=mask)
    once = crews[ranks].run(update, folder, recipe(ranks, stage, **options), half)
    of_two = crews[ranks].run(update, folder, recipe(ranks, stage, minibatches=2, **options), half)
    for one, two in zip(once, of_two, strict=True):
        assert_same(two, one)
        assert (one.metrics["policy/updates"], two.metrics["policy/updates"]) == (1, 1)
        assert two.next_rate == 0  # the schedule ends where it should
        assert all(np.isfinite(value) for value in two.metrics.values())


def rates(rank: Rank, folder: Path, recipe: Recipe) -> list[dict[str, float]]:
    """Utilisation of an update of 2 s on a CPU and on an H100, and the metrics of a real update."""
    role = PolicyRole(recipe, str(folder), rank)
    found = [role.utilisation([5, 3], 4, seconds=2.0)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf.roles.role.gpu_of_process", lambda device: ("NVIDIA H100 80GB HBM3", 81008 * 2**20))
        found.append(role.utilisation([5, 3], 4, seconds=2.0))
    return [*found, role.update(experience(), step=0)]


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 3)])
def test_an_update_reports_how_well_it_uses_the_hardware(
    ranks: int, stage: int, folder: Path, crews: dict[int, Crew]
) -> None:
    """The small Llama: a layer has 64 · (64 + 32 + 32 + 64) + 3 · 64 · 96 numbers in matrices, the head 61 · 64.

    Six FLOPs for each and token; 12 · 64 for each layer and pair of tokens, of which 5 and 3 tokens have 15 + 6. Of
    float32 an H100 makes 67 TFLOP/s outside its tensor cores.
    """
    flops = 6 * 8 * 2 * (64 * 192 + 3 * 64 * 96) + 6 * 4 * 61 * 64 + 2 * 12 * 64 * 21
    for on_cpu, on_gpu, updated in crews[ranks].run(rates, folder, recipe(ranks, stage)):
        assert on_cpu == {
            "perf/model_tflops": pytest.approx(flops / 2.0 / ranks / 1e12)
        }  # the peak of a CPU is unknown
        assert on_gpu["perf/mfu"] == pytest.approx(flops / 2.0 / ranks / 67e12)
        assert updated["perf/model_tflops"] > 0 and "perf/mfu" not in updated


def counted_after_an_early_end(rank: Rank, folder: Path, recipe: Recipe) -> tuple[float, list[int]]:
    """Number of updates, and the tokens and predicted tokens whose FLOPs are counted."""
    role, counted = PolicyRole(recipe, str(folder), rank), list[int]()

    def utilisation(lengths: np.ndarray, predicted: int, seconds: float) -> dict[str, float]:
        counted.extend([int(lengths.sum()), predicted])
        return {}

    role.utilisation = utilisation
    return role.update(experience(), step=0)["policy/updates"], counted


def test_updates_that_were_not_made_cost_nothing(folder: Path, one_rank: Crew) -> None:
    """The sequences have 51 tokens, 24 of them inside the mask: of one of three epochs, since the batch is far away."""
    [found] = one_rank.run(counted_after_an_early_end, folder, recipe(target_kl=1e-6))
    assert found == (1.0, [51, 24])


def infinite(rank: Rank, folder: Path, recipe: Recipe, batch: Experience) -> None:
    """Update of a policy whose head has overflowed."""
    role = PolicyRole(recipe, str(folder), rank)
    with torch.no_grad():
        role.lm.get_output_embeddings().weight.mul_(torch.inf)
    role.update(batch, step=0)


def test_a_policy_that_overflows_is_named(folder: Path, one_rank: Crew) -> None:
    with pytest.raises(MachineryError, match="NaN or infinite during the update, in logprobs"):
        one_rank.run(infinite, folder, recipe(stage=0), experience())


def score_then_update(rank: Rank, folder: Path, recipe: Recipe, batch: Experience) -> dict[str, Any]:
    """Log-probabilities of the rollouts, then an update against them: its first pass is over fresh rollouts."""
    role = PolicyRole(recipe, str(folder), rank)
    share = role.logprobs(batch.rollouts)
    parts: list[Any] = [None] * rank.world
    torch.distributed.all_gather_object(parts, share)
    logprobs = join_tokens(parts, batch.rollouts.sequences)
    return {"logprobs": logprobs, "metrics": role.update(replace(batch, old_logprobs=logprobs), step=0)}


def score_alone(rank: Rank, folder: Path, recipe: Recipe, batch: Experience) -> tuple[Any, float]:
    """A unit that only the second rank gets, while the first makes no pass; then an update by both."""
    role = PolicyRole(recipe, str(folder), rank)
    part = role.logprobs(batch.rollouts) if rank.rank == 1 else None
    return part, role.update(batch, step=0)["first_pass/ratio"]


def score_whole(rank: Rank, folder: Path, recipe: Recipe, batch: Experience) -> tuple[Any, None]:
    return PolicyRole(recipe, str(folder), rank).logprobs(batch.rollouts), None


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_below_zero_3_one_rank_scores_a_whole_unit_without_the_others(
    stage: int, folder: Path, crews: dict[int, Crew]
) -> None:
    batch = experience()
    (nothing, ratio), (part, other) = crews[2].run(score_alone, folder, recipe(2, stage, 20, minibatches=7), batch)
    [(alone, _)] = crews[1].run(score_whole, folder, recipe(1, 0, 20, minibatches=7), batch)
    assert nothing is None and ratio == other
    assert sorted(part.samples.tolist()) == list(range(len(batch.rollouts)))
    np.testing.assert_array_equal(part.samples, alone.samples)
    np.testing.assert_array_equal(part.values, alone.values)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
def test_the_first_pass_over_fresh_rollouts_has_ratio_1(
    ranks: int, stage: int, folder: Path, crews: dict[int, Crew]
) -> None:
    answers = crews[ranks].run(score_then_update, folder, recipe(ranks, stage, 20, minibatches=7), experience())
    for answer in answers:
        metrics = answer["metrics"]
        assert metrics["first_pass/ratio"] == pytest.approx(1, abs=1e-5)
        assert metrics["first_pass/approxkl"] == pytest.approx(0, abs=1e-9)
        assert metrics["first_pass/clipfrac"] == 0
        assert metrics["policy/approxkl_avg"] > 1e-6  # later minibatches have moved
        np.testing.assert_array_equal(answer["logprobs"], answers[0]["logprobs"])


SUMMED = torch.tensor(
    [[2.0, 1, 4, 4, 0, 0, 12, 9, 9, 9, 4], [1.0, 0, 3, 5, 0.5, 1, 2, 9, 9, 9, 2]], dtype=torch.float64
)
"""Loss and KL, divided already; sums of ratio, ratio², ½ log², clipped, entropy, three that are not averaged here, and
tokens: of 4 tokens and of 2."""
AVERAGED = {
    "loss/policy_avg": (2 + 1) / 2,
    "loss/kl_avg": (1 + 0) / 2,
    "val/ratio": (1 + 1.5) / 2,
    "val/ratio_var": (0 + (2.5 - 2.25)) / 2,
    "policy/approxkl_avg": (0 + 0.25) / 2,
    "policy/clipfrac_avg": (0 + 0.5) / 2,
    "policy/entropy_avg": (3 + 1) / 2,
}
OF_THE_FIRST = {"first_pass/ratio": 1.0, "first_pass/approxkl": 0.0, "first_pass/clipfrac": 0.0}


def test_metrics_are_means_over_tokens_of_each_update_and_then_over_updates() -> None:
    assert update_metrics(SUMMED) == pytest.approx(AVERAGED | OF_THE_FIRST)
    second = {"first_pass/ratio": 1.5, "first_pass/approxkl": 0.25, "first_pass/clipfrac": 0.5}
    assert update_metrics(SUMMED.flip(0)) == pytest.approx(AVERAGED | second)


@pytest.mark.parametrize(("kl_in", "mode"), [("loss", "token_truncate"), ("loss", "token_mask"), ("loss", "none")])
@pytest.mark.parametrize(("ranks", "stage", "budget"), [(1, 1, 20), (2, 2, 11)])
def test_an_update_that_computes_the_old_logprobs_is_the_plain_one_with_them(
    kl_in: Any, mode: Any, ranks: int, stage: int, budget: int, folder: Path, crews: dict[int, Crew]
) -> None:
    """The plain update gets log π_old from transformers, and weights π_old/π_engine, at most 1½, by NumPy."""
    capped = {} if mode == "none" else {"importance_cap": 1.5}
    made = recipe(ranks, stage, budget, epochs=1, kl_in=kl_in, importance_sampling=mode, **capped)
    assert made.algorithm.old_logprobs == "update"
    batch, kept = experience(), experience().response_mask
    given = replace(batch, importance_weights=kept.astype(np.float32))  # its old_logprobs are the engine's
    with torch.no_grad():
        rows = one_by_one(load_causal(folder, ModelConfig()), batch, list(range(len(SIZES))))
    own = np.zeros(len(kept), dtype=np.float32)
    own[kept] = torch.cat([row["new"] for row in rows]).numpy()
    ratios = np.exp(own - np.where(kept, batch.old_logprobs, 0))
    ratio = {"none": np.ones_like(ratios), "token_truncate": np.minimum(ratios, 1.5), "token_mask": ratios}[mode]
    weights = np.where(ratios > 1.5, 0, ratio) if mode == "token_mask" else ratio
    known = replace(batch, old_logprobs=own, importance_weights=weights.astype(np.float32))
    expected = plain_update(folder, known, made.algorithm)[0]
    for updated in crews[ranks].run(update, folder, made, given):
        assert_same(updated, expected)
        metrics = updated.metrics
        assert metrics["rollout/logprob_gap_mean"] == pytest.approx(
            float(np.abs(own - batch.old_logprobs)[kept].mean()), rel=1e-5
        )
        assert metrics["objective/logratio_abs_mean"] == pytest.approx(
            float(np.abs(own - batch.ref_logprobs)[kept].mean()), rel=1e-5
        )
        assert metrics["rollout/importance_weight_mean"] == pytest.approx(float(weights[kept].mean()), rel=1e-5)
        assert metrics["val/ratio"] == 1 and metrics["policy/clipfrac_avg"] == 0


def test_an_update_with_known_old_logprobs_reports_nothing_of_the_engine(folder: Path, one_rank: Crew) -> None:
    [updated] = one_rank.run(update, folder, recipe(epochs=2), experience())
    assert not any(name.startswith("rollout/") for name in updated.metrics)
