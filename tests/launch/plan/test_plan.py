"""Whole plans by hand: slots, batches, seconds, what does not fit, and the changes that fix it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.plan.cluster import parse_cluster
from launch.plan.fit import ROLES, candidates, changed
from launch.plan.members import PlannedRole, PlannedSlot, Shapes, assign_slots, members
from launch.plan.memory import NOTHING, PROCESS, EngineMemory, persistent_memory
from launch.plan.plan import Placed
from launch.plan.report import Plan, as_values, make_plan
from launch.plan.show import show
from launch.plan.timing import (
    SHARES,
    ComputeRates,
    adding_seconds,
    exchange_seconds,
    forward_flops,
    gather_seconds,
    offload_seconds,
    publish_seconds,
    reduce_seconds,
    rollout_seconds,
    samples_per_rank,
    update_seconds,
)
from launch.plan.work import batch_of, passes
from rlhf.config.load import load_recipe
from rlhf.config.named_files import STAGE_DATA
from rlhf.config.schema import EarlyStopConfig, LoRAConfig, Recipe, RewardSourceConfig
from rlhf.errors import UserError
from rlhf.generation.limits import EngineLimits
from tests.launch.plan.small import TINY, find, recipe

ROOT = Path(__file__).parents[3]
DATA = tuple(dict.fromkeys(("path", *STAGE_DATA.values())))
SMALL = {"model": "Qwen/Qwen2.5-0.5B", "placement__strategy": "separate"}


def planned(made: Recipe, cluster: str = "gpus=8,gpu=h100-80", command: str = "ppo") -> Plan:
    return make_plan(made, command, parse_cluster(cluster), find)  # type: ignore[arg-type]


def placed(made: Recipe, cluster: str) -> dict[str, list[tuple[int, tuple[int, ...]]]]:
    """Role → node and GPUs of each rank."""
    found: tuple[PlannedSlot, ...] = assign_slots(made, "ppo", parse_cluster(cluster))
    roles = dict.fromkeys(slot.role for slot in found)
    return {role: [(slot.node, slot.gpus) for slot in found if slot.role == role] for role in roles}


def test_separate_roles_by_hand() -> None:
    """Largest first: three policy ranks, the engine with two GPUs, then critic, reference, reward."""
    made = recipe(**SMALL, placement__policy__ranks=3, rollout__tensor_parallel=2)
    assert placed(made, "gpus=8,gpu=h100-80") == {
        "policy": [(0, (0,)), (0, (1,)), (0, (2,))],
        "critic": [(0, (5,))],
        "reference": [(0, (6,))],
        "reward model": [(0, (7,))],
        "rollout": [(0, (3, 4))],
    }


def test_engines_stay_in_one_node_and_single_gpus_fill_what_is_left() -> None:
    made = recipe(**SMALL, rollout__engines=2, rollout__tensor_parallel=2)
    found = placed(made, "nodes=3,gpus=3,gpu=h100-80")
    assert found["rollout"] == [(0, (0, 1)), (1, (0, 1))]
    assert found["policy"] == [(0, (2,))] and found["critic"] == [(1, (2,))]
    assert found["reference"] == [(2, (0,))]
    assert placed(made, "nodes=2,gpus=2,gpu=h100-80") == {}


def test_colocated_ranks_share_the_gpu_of_their_number() -> None:
    made = recipe(**{**SMALL, "placement__strategy": "colocated"}, placement__policy__ranks=2, rollout__engines=2)
    found = placed(made, "gpus=8,gpu=h100-80")
    assert found["policy"] == found["rollout"] == [(0, (0,)), (0, (1,))]
    assert found["critic"] == [(0, (0,))]


def roles_of(made: Recipe) -> tuple[PlannedRole, ...]:
    return members(made, "ppo", Shapes(made, find))


def test_roles_and_what_they_train() -> None:
    found = {member.role: member for member in roles_of(recipe())}
    assert {role: member.head for role, member in found.items()} == {
        "policy": "language",
        "critic": "scalar",
        "reference": "language",
        "reward model": "scalar",
    }
    assert [member.trained > 0 for member in found.values()] == [True, True, False, False]
    assert [m.role for m in roles_of(recipe(algorithm__name="grpo"))] == ["policy", "reference", "reward model"]


def test_a_rank_gets_whole_samples() -> None:
    """10 samples over 4 ranks are 3 for the busiest; over two groups of two ranks 5 a group, half of each per rank."""
    policy = roles_of(recipe(placement__policy__ranks=4))[0]
    split = roles_of(recipe(placement__policy__ranks=4, placement__policy__sequence_parallel=2))[0]
    assert (samples_per_rank(10, policy), samples_per_rank(1, policy), samples_per_rank(10, split)) == (3, 1, 2.5)


def test_a_batch_by_hand() -> None:
    """64 samples of 512 tokens: blocks of 16; an update of 32 over two ranks is 16 each, eight per row of 4,096."""
    made = recipe(
        ppo__batch_size=64,
        ppo__samples_per_prompt=4,
        algorithm__minibatches=2,
        algorithm__epochs=3,
        rollout__block_size=16,
        placement__policy__ranks=2,
    )
    batch = batch_of(made, "ppo", roles_of(made))
    assert (batch.samples, batch.prompts, batch.length, batch.blocks) == (64, 16, 512, 4)
    assert (batch.updates, batch.samples_per_update, batch.total_updates) == (6, 32, 600)
    assert batch.update_passes == {"policy": 2, "critic": 4}
    assert batch.score_passes == {"policy": 4, "critic": 8, "reference": 8, "reward model": 8}


def test_the_policy_scores_nothing_where_the_update_computes_the_old_logprobs() -> None:
    once = {"algorithm__epochs": 1, "algorithm__kl_in": "loss", "algorithm__old_logprobs": "update"}
    made = recipe(**once)
    assert set(batch_of(made, "ppo", roles_of(made)).score_passes) == {"critic", "reference", "reward model"}
    adapted = recipe(**once, model__lora=LoRAConfig())
    assert "policy" in batch_of(adapted, "ppo", roles_of(adapted)).score_passes  # with its adapters disabled


@pytest.mark.parametrize(("stage", "budget", "rows"), [(3, 16_384, 1), (1, 16_384, 1), (3, 4096, 4), (3, 8192, 2)])
def test_blocks_are_scored_in_units_that_fill_rows(stage: int, budget: int, rows: int) -> None:
    """Four blocks of 8,192 tokens on two ranks. Under ZeRO-3 a unit fills a row of 16,384 tokens on each: it has all
    four blocks. Below, it fills one row of one rank, and each rank has one. Rows of 4,096: a block is one on each."""
    made = recipe(
        ppo__batch_size=64,
        ppo__samples_per_prompt=4,
        rollout__block_size=16,
        placement__policy__ranks=2,
        placement__policy__zero_stage=stage,
        placement__policy__micro_batch_tokens=budget,
    )
    assert batch_of(made, "ppo", roles_of(made)).score_passes["policy"] == rows


def machine(made: Recipe, cluster: str = "nodes=2,gpus=8,gpu=h100-80,network=25") -> ComputeRates:
    parsed = parse_cluster(cluster)
    return ComputeRates(cluster=parsed, slots=assign_slots(made, "ppo", parsed), dtype=made.model.dtype)


def test_flops_by_hand() -> None:
    """10 tokens of one sequence, 3 of them response: 2·2·576 and 2·2·8·10 per token, 2·800 per response token."""
    policy = roles_of(recipe("tiny"))[0]
    assert policy.shape is TINY
    assert forward_flops(policy, 10, 10, 3) == 10 * (2304 + 320) + 3 * 1600


def test_links_by_hand() -> None:
    """ZeRO-3 over 12 ranks on two nodes: 11/12 of 16.06 GB at 0.7 of 25 GB/s; a publish 16.06 GB, and a gather."""
    made = recipe(placement__strategy="separate", placement__policy__ranks=12, placement__policy__zero_stage=3)
    policy, weights = roles_of(made)[0], 2 * 8_030_261_248
    gather = weights * 11 / 12 / (SHARES["link"] * 25e9)
    assert gather_seconds(policy, machine(made)) == pytest.approx(gather)
    assert reduce_seconds(policy, 3, machine(made)) == pytest.approx(3 * gather)
    sent = publish_seconds(policy, made, False, machine(made))["send"]
    assert sent == pytest.approx(weights / (SHARES["link"] * 25e9) + gather)


def test_exchanges_by_hand() -> None:
    """Llama 8B, 4 ranks a row: 3/4 of 2·(32 + 8) heads of size 128, 2 bytes, 32 layers, at .7 of a node's 450 GB/s."""
    row = {"placement__policy__ranks": 8, "placement__policy__sequence_parallel": 4}
    made = recipe(placement__strategy="separate", **row)
    policy = roles_of(made)[0]
    moved = 1000 * 32 * 80 * 128 * 2 * 3 / 4
    assert exchange_seconds(policy, 1000, machine(made)) == pytest.approx(moved / (SHARES["link"] * 450e9))
    assert exchange_seconds(roles_of(recipe())[0], 1000, machine(made)) == 0
    over_nodes = machine(made, "nodes=4,gpus=3,gpu=h100-80,network=25")
    assert exchange_seconds(policy, 1000, over_nodes) == pytest.approx(moved / (SHARES["link"] * 25e9))
    assert passes(8, 2000, policy) == 2  # four samples for each of two groups, two in a row of 4,096 tokens


def test_shared_matrices_by_hand() -> None:
    """Llama 8B, 4 of 8 ranks per matrix: a layer's 218,103,808 numbers divided by 4, its two norms of 4,096 whole."""
    split = {"placement__policy__ranks": 8, "placement__policy__tensor_parallel": 4}
    made = recipe(placement__strategy="separate", **split)
    policy = roles_of(made)[0]
    outside = 8_030_261_248 - 32 * 218_103_808  # norms, embedding, output head
    own = outside + 32 * 218_103_808 // 4
    assert policy.own(policy.trained) == own and policy.shards == 2
    memory = persistent_memory(policy, "bfloat16")
    assert (memory.weights, memory.gradients, memory.master) == (2 * own, 6 * own, 2 * own)
    added = 2 * 2 * 32 * 4000 * 4096 * 2 * 3 / 4  # twice a layer, sent about twice: the states of four ranks' tokens
    assert adding_seconds(policy, 1000, machine(made)) == pytest.approx(added / (SHARES["link"] * 450e9))
    assert adding_seconds(roles_of(recipe())[0], 1000, machine(made)) == 0
    assert passes(8, 2000, policy) == 2  # dealt to two groups, as rows are that ranks share


@pytest.mark.parametrize(("checkpointing", "all_reduces"), [(False, 2 + 5), (True, 2 + 2 + 5)])
def test_an_update_of_shared_matrices_by_hand(checkpointing: bool, all_reduces: int) -> None:
    """Llama 8B, 4 ranks on two nodes, 64 samples of 512 tokens: only states of a matrix's parts cross the network."""
    # A layer adds states up twice in a forward pass, which checkpointing repeats. In the backward pass it adds them up
    # once for each matrix whose outputs are divided: q, k, v, gate and up.
    split = {"placement__policy__ranks": 4, "placement__policy__tensor_parallel": 4}
    batch = {"ppo__batch_size": 64, "algorithm__minibatches": 1, "algorithm__epochs": 1}
    made = recipe(placement__strategy="separate", model__gradient_checkpointing=checkpointing, **split, **batch)
    policy, step = roles_of(made)[0], batch_of(made, "ppo", roles_of(made))
    slow, fast = (
        update_seconds(policy, step, made, machine(made, f"nodes=4,gpus=2,gpu=h100-80,network={network}"))
        for network in (25, 50)
    )
    moved = all_reduces * 32 * 2 * 64 * 512 * 4096 * 2 * 3 / 4  # all-reduces of 32 layers, each sent about twice
    assert slow - fast == pytest.approx(moved / (SHARES["link"] * 50e9))


def test_rows_that_are_too_long_are_shared() -> None:
    """131,072 tokens exceed a GPU on each of eight ranks, with any other change."""
    made = recipe(
        placement__strategy="separate",
        rollout__max_response_length=100_000,
        ppo__batch_size=128,
        placement__policy__ranks=8,
        placement__critic__ranks=8,
        **{f"placement__{role}__micro_batch_tokens": 131_072 for role in ("policy", "critic", "reference", "reward")},
        **{f"placement__{role}__zero_stage": 3 for role in ("policy", "critic", "reference", "reward")},
    )
    plan = planned(made, "nodes=8,gpus=8,gpu=h100-80")
    assert not plan.fits and plan.change is not None
    assert plan.change["placement.policy.sequence_parallel"] > 1


def test_heads_that_ranks_cannot_share_are_a_problem() -> None:
    made = recipe(**SMALL, placement__policy__ranks=4, placement__policy__sequence_parallel=4)
    assert any("has 14 heads, 2 of keys and values" in problem for problem in planned(made).stages[0].placed.problems)


def test_decoding_by_hand() -> None:
    """Bound by memory for 16 sequences: weights and 16 · (256 + 128) tokens of KV cache per token, 256 times."""
    made = recipe(ppo__batch_size=16, placement__strategy="separate")
    plan = planned(made, "nodes=1,gpus=8,gpu=h100-80").stages[0]
    engine = plan.placed.engine
    assert engine is not None and engine.at_once >= 16
    read = 2 * 8_030_261_248 + 16 * 384 * 131_072
    seconds = rollout_seconds(find("meta-llama/Llama-3.1-8B"), engine, plan.batch, made, machine(made))
    assert seconds["decode"] == pytest.approx(256 * read / (SHARES["memory"] * 3350e9))


def test_what_an_engine_does_not_hold_at_once_waits() -> None:
    """300 samples where 128 fit: three times 100, each 256 steps of reading the weights and 384 tokens a sample."""
    made = recipe(ppo__batch_size=300, placement__strategy="separate")
    limits = EngineLimits(sequences=128, tokens=2048)
    engine = EngineMemory(memory=NOTHING, kv_tokens=10**6, at_once=128, limits=limits)
    batch = batch_of(made, "ppo", roles_of(made))
    seconds = rollout_seconds(find("meta-llama/Llama-3.1-8B"), engine, batch, made, machine(made))
    read = 2 * 8_030_261_248 + 100 * 384 * 131_072
    assert seconds["decode"] == pytest.approx(3 * 256 * read / (SHARES["memory"] * 3350e9))


def test_a_plan_that_fits_says_so_and_is_json() -> None:
    plan = planned(recipe(**SMALL))
    assert plan.fits and plan.change is None and plan.larger is None
    assert "It fits the GPUs. Not judged: " in show(plan).splitlines()[-1]
    values = json.loads(json.dumps(as_values(plan)))
    stage = values["stages"]["ppo"]
    policy = stage["memory"]["policy"]
    assert policy["phases"]["update"]["weights"] == 2 * 494_032_768
    assert policy["margin"] == policy["capacity"] - max(phase["total"] for phase in policy["phases"].values())
    parts = {key: value for key, value in policy["phases"]["update"].items() if key != "total"}
    assert sum(parts.values()) == policy["phases"]["update"]["total"]
    assert stage["step_seconds"] > 0 and values["nodes_that_suffice"] is None


def test_a_checkpoint_is_shown_with_the_rate_that_a_stop_needs() -> None:
    """Policy and critic of 0.5B, at most 16 bytes a weight; the critic has 896 more, its head."""
    plan = planned(recipe(**SMALL, checkpoint__grace_seconds=30.0))
    size = 16 * (494_032_768 + 494_032_768 + 896)
    assert as_values(plan)["stages"]["ppo"]["checkpoint_bytes"] == size
    text = f"at most {size / 2**30:.1f} GiB; a stop may have to write 2 in checkpoint.grace_seconds=30"
    assert f"{text}: {2 * size / 30 / 1e9:.1f} GB/s to runs_dir; at 0.5 GB/s that takes 64 seconds" in show(plan)
    enough = planned(recipe(**SMALL, checkpoint__grace_seconds=64.0))
    assert "at 0.5 GB/s" not in show(enough)


def test_too_few_gpus_are_told_with_the_table_and_more_nodes_are_offered() -> None:
    plan = planned(recipe(**SMALL, placement__policy__ranks=8), "gpus=8,gpu=h100-80")
    assert not plan.fits and plan.larger is not None and plan.larger.nodes == 2
    assert "the run needs 12 GPUs and there are 8" in show(plan)
    assert plan.change == {"placement.policy.ranks": 4}


@pytest.mark.parametrize("stage", [0, 1])
def test_what_does_not_fit_fits_with_the_change_that_is_offered(stage: int) -> None:
    """8B in training at 16 to 20 bytes per parameter is twice a GPU: no row is short enough."""
    made = recipe(
        placement__strategy="separate",
        placement__policy__ranks=4,
        placement__policy__zero_stage=stage,
        placement__critic__ranks=8,
        placement__critic__zero_stage=3,
        ppo__batch_size=128,
        rollout__gpu_memory_fraction=0.8,
    )
    plan = planned(made, "nodes=2,gpus=8,gpu=h100-80")
    assert not plan.fits and plan.change is not None
    assert "policy: " in plan.stages[0].placed.problems[0]
    assert planned(changed(made, plan.change), "nodes=2,gpus=8,gpu=h100-80").fits
    for key in plan.change:
        fewer = {name: value for name, value in plan.change.items() if name != key}
        assert not planned(changed(made, fewer), "nodes=2,gpus=8,gpu=h100-80").fits, f"{key} is not needed"


def test_an_engine_without_room_for_a_sequence_does_not_fit() -> None:
    made = recipe(**{**SMALL, "model": "meta-llama/Llama-3.1-8B"}, rollout__gpu_memory_fraction=0.15)
    plan = planned(made)
    assert any("KV cache of an engine holds 0 tokens" in problem for problem in plan.stages[0].placed.problems)


def test_roles_that_share_a_gpu_are_counted_together() -> None:
    made = recipe(**{**SMALL, "placement__strategy": "colocated"}, rollout__gpu_memory_fraction=0.3)
    stage = planned(made, "gpus=1,gpu=h100-80").stages[0].placed
    [together] = stage.shared
    assert set(together.roles) == {use.role for use in stage.uses}
    for phase, memory in together.phases.items():  # one role works at a time, and the others wait
        added = max(use.phases[phase].total - use.waiting[phase].total for use in stage.uses)
        assert memory.total == sum(use.waiting[phase].total for use in stage.uses) + added
    engine = next(use for use in stage.uses if use.role == "rollout")
    assert engine.phases["update"].total < engine.phases["publish"].total < engine.phases["rollout"].total


def sharing(offload: str, **settings: object) -> Placed:
    """All roles of 0.5B on one GPU, with this ``offload_between_phases``."""
    each = {f"placement__{role}__offload_between_phases": offload for role in ROLES}
    made = recipe(**{**SMALL, "placement__strategy": "colocated", **each, **settings})
    return planned(made, "gpus=1,gpu=h100-80").stages[0].placed


def test_roles_that_share_a_gpu_compute_one_after_another() -> None:
    each = {f"placement__{role}__offload_between_phases": "none" for role in ROLES}
    made = recipe(**SMALL, **each, rollout__gpu_memory_fraction=0.2)
    apart = planned(made).stages[0].seconds
    together = planned(changed(made, {"placement.strategy": "colocated"}), "gpus=1,gpu=h100-80").stages[0].seconds
    assert (len(apart["score"]), len(apart["update"])) == (4, 2)
    for phase in ("score", "update"):
        assert together[phase] == {"all roles": pytest.approx(sum(apart[phase].values()))}


def test_states_are_on_a_shared_gpu_in_the_update_alone() -> None:
    """494 million parameters; a scalar head replaces the output head, which is tied to the embedding."""
    stage, kept = sharing("auto"), sharing("none")
    assert stage.offload_modes == dict.fromkeys(("policy", "critic", "reference", "reward model"), "states")
    [together], [before] = stage.shared, kept.shared
    states = 16 + 2  # bytes a parameter: sum of gradients, master, moments; and gradients as autograd makes them
    trained = sum(use.parameters for use in stage.uses if use.role in ("policy", "critic"))
    for phase in ("rollout", "score", "publish"):
        assert before.phases[phase].total - together.phases[phase].total == states * trained
    critic = next(use.parameters for use in stage.uses if use.role == "critic")
    assert before.phases["update"].total - together.phases["update"].total == states * critic, (
        "the policy updates alone"
    )
    assert together.host - before.host == 16 * trained


def test_roles_that_make_room_are_counted_one_at_a_time() -> None:
    stage = sharing("all")
    uses, [together] = {use.role: use.phases for use in stage.uses}, stage.shared
    engine = uses["rollout"]
    assert together.phases["rollout"].total == engine["rollout"].total + 4 * PROCESS
    for phase, roles in {"score": list(uses), "update": ["policy", "critic"], "publish": ["policy"]}.items():
        worst = max(uses[role][phase].total for role in roles if role != "rollout")
        assert together.phases[phase].total == worst + 3 * PROCESS + engine[phase].total
    assert together.phases["publish"].weights == uses["policy"]["publish"].weights + engine["publish"].weights
    weights = 2 * sum(use.parameters for use in stage.uses if use.role != "rollout")
    assert together.host == sharing("states").shared[0].host + weights


def test_a_held_out_scorer_keeps_its_weights_beside_the_engines() -> None:
    evaluated = EarlyStopConfig(scorer=RewardSourceConfig(model="Qwen/Qwen2.5-0.5B"))
    stage = sharing("all", early_stop=evaluated)
    assert stage.offload_modes["judge"] == "states" and stage.offload_modes["reward model"] == "all"
    judge = next(use for use in stage.uses if use.role == "judge")
    assert judge.waiting["rollout"].weights == 2 * judge.parameters


def test_making_room_is_offered_where_it_suffices() -> None:
    """An engine with nine tenths of the GPU leaves no space for another role's weights."""
    engine = {"rollout__gpu_memory_fraction": 0.9, "model": "Qwen/Qwen2.5-1.5B"}
    made = recipe(**{**SMALL, "placement__strategy": "colocated", **engine})
    offered = [change for change in candidates(made, parse_cluster("gpus=1,gpu=h100-80")) if "offload" in str(change)]
    between = [f"placement.{role}.offload_between_phases" for role in ROLES]
    assert [change for change in offered if next(iter(change)) in between] == [{key: "all"} for key in between]
    assert not planned(made, "gpus=1,gpu=h100-80").fits
    assert planned(changed(made, dict.fromkeys(between, "all")), "gpus=1,gpu=h100-80").fits


def test_the_time_of_making_room_by_hand() -> None:
    """Weights are copied both ways, a frozen role's only to the GPU; states are copied for an update."""
    stage, there = sharing("all"), machine(recipe(**SMALL))
    policy, reference = (next(m for m in stage.members if m.role == role) for role in ("policy", "reference"))
    link, parameters = SHARES["link"] * there.cluster.type.host, 494_032_768
    assert offload_seconds(policy, "all", there) == pytest.approx((2 * 2 + 2 * 16) * parameters / link)
    assert offload_seconds(policy, "all", there, weights_alone=True) == pytest.approx(2 * 2 * parameters / link)
    assert offload_seconds(policy, "states", there, weights_alone=True) == 0
    assert offload_seconds(reference, "all", there, weights_alone=True) == pytest.approx(2 * parameters / link)


def test_only_the_roles_that_share_are_counted_together() -> None:
    made = recipe(**SMALL, placement__reference__share_with="policy", placement__rollout__share_with="policy")
    stage = planned(made, "gpus=3,gpu=h100-80").stages[0].placed
    [together] = stage.shared
    assert together.roles == ("policy", "reference", "rollout")
    assert [use.role for use in stage.must_fit] == ["critic", "reward model", "policy + reference + rollout"]
    found = placed(made, "gpus=3,gpu=h100-80")
    assert found["policy"] == found["reference"] == found["rollout"] == [(0, (0,))]
    assert {found["critic"][0], found["reward model"][0]} == {(0, (1,)), (0, (2,))}


@pytest.mark.parametrize("cluster", ["gpus=4,gpu=h200-141", "gpus=4,gpu=h100-80"])
def test_all_who_share_gpus_are_offered_fewer_together(cluster: str) -> None:
    """With fewer ranks, one of the roles alone would have other slots than the rest."""
    made = load_recipe(ROOT / "recipes" / "llama_8b_8gpu.yaml")
    change = planned(made, cluster, "pipeline").change
    ranks = {f"placement.{role}.ranks": 4 for role in ROLES}
    assert change == {**ranks, "rollout.engines": 4}
    assert planned(changed(made, change), cluster, "pipeline").fits


@pytest.mark.parametrize("name", DATA)
def test_data_need_not_be_here(name: str) -> None:
    made = recipe(**SMALL)
    given = {**dict.fromkeys(DATA), name: "/nowhere/data.jsonl"}
    assert planned(changed(made, {f"data.{key}": value for key, value in given.items()})).fits


def test_a_plan_needs_gpus() -> None:
    with pytest.raises(UserError, match=r"placement\.device = cpu"):
        planned(recipe(**SMALL, placement__device="cpu"))


def test_an_impossible_recipe_is_refused() -> None:
    with pytest.raises(UserError, match=r"ppo\.batch_size"):
        planned(recipe(**SMALL, ppo__batch_size=15, placement__policy__ranks=2))


def test_one_of_a_kind_is_not_counted_as_several() -> None:
    text = show(planned(recipe(), "gpus=1,gpu=h100-80", "sft"))
    assert ": 1 GPU of " in text and "1 GPUs" not in text and "1 micro-batches" not in text
