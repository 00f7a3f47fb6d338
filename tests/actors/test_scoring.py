"""Tests of re-dispatch after a scorer dies: ranks that score and die as configured, without a model."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from actors.blocks import Block
from actors.early_stop import EarlyStopping
from actors.group import Group
from actors.placement import Placement
from actors.rollout import BlockSummary
from actors.run_actors import RunActors
from actors.scoring import FEWEST_TOKENS, ScoredBlocks, Scoring, ScoringMethod
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext
from rlhf.config.schema import EarlyStopConfig, PlacementConfig, Recipe, RecoveryConfig, RewardSourceConfig, RoleConfig
from rlhf.errors import LostError, MachineryError
from rlhf.placement.pools import Sharing
from rlhf.roles.assemble import ResultSpec, ScoredUnit
from rlhf.roles.block_result import BlockResult, join_samples
from rlhf.tracking.spans import PhaseTimer
from rlhf.types import FinishReason, Prompt, Rollout, RolloutBlock
from rlhf.zero.process_group import Rank

CONTEXT = PhaseContext(phase="score", step=2)
BLOCKS = ([10, 11, 12], [20, 21], [30, 31, 32, 33])
"""Prompts of each block; a block is known by its first."""
RANKS = {"policy": 1, "critic": 1, "reference": 1, "reward": 2, "judge": 2}


ZERO_3 = RoleConfig(ranks=2, zero_stage=3, micro_batch_tokens=8)
"""The reward's and the judge's: both ranks get every unit, and each scores a part of it."""
BIG = 2 * FEWEST_TOKENS
"""Tokens of a block that fills every unit alone."""


def packed(prompts: Sequence[int]) -> ray.ObjectRef:
    """A block of one answer to each prompt."""
    return ray.put(
        RolloutBlock.pack(
            [
                Rollout(
                    prompt=Prompt(id=prompt, tokens=(1,)),
                    tokens=np.array([2], np.int32),
                    logprobs=np.zeros(1, np.float32),
                    mask=np.ones(1, bool),
                    weight_version=0,
                    finish_reason=FinishReason.STOP,
                    seed=seed,
                )
                for seed, prompt in enumerate(prompts)
            ]
        )
    )


class Role:
    """Scores a sample by its prompt. What it was asked, and died of, is kept in a folder, as no memory would last."""

    def __init__(self, folder: Path, role: str, dies: tuple[str, int, int], rank: Rank) -> None:
        self.folder, self.role, self.dies, self.rank = folder, role, dies, rank

    def scores(self, block: RolloutBlock) -> BlockResult:
        first = int(block.prompt_ids[0])
        self._note(str(first))
        self._die_of(first)
        mine = np.arange(self.rank.rank, len(block), self.rank.world)
        return BlockResult(samples=mine, values=block.prompt_ids[mine].astype(np.float32))

    def scores_alone(self, block: RolloutBlock) -> BlockResult:
        """All scores of a unit that no other rank has."""
        self._note(f"unit {block.prompt_ids.tolist()}")
        return BlockResult(samples=np.arange(len(block)), values=block.prompt_ids.astype(np.float32))

    def update(self, experience: str, step: int) -> dict[str, float]:
        self._note(f"{experience} of step {step}")
        return {self.role: float(step)}

    def offload(self, parts: Sequence[str]) -> None:
        self._note(f"offload {sorted(parts)}")
        self._die_of(len(parts) if self.role == "reference" else -1)

    def publish(self, seconds: float) -> tuple[dict[str, int], dict[int, str]]:
        self._note("publish")
        return {}, {}

    def _note(self, what: str) -> None:
        with (self.folder / "asked").open("a") as file:
            file.write(f"{self.role} rank {self.rank.rank}: {what}\n")

    def _die_of(self, block: int) -> None:
        mark = self.folder / "died"
        if self.dies == (self.role, self.rank.rank, block) and not mark.exists():
            mark.touch()
            time.sleep(0.5)  # whoever waits has taken in what was finished before
            os._exit(1)


class Small:
    """RunActors of fake roles that score, one rank of which dies at a block; records the reported events."""

    def __init__(
        self,
        folder: Path,
        roles: Sequence[str],
        dies: tuple[str, int, int],
        bad_samples: int = 100,
        rests: Mapping[str, Any] = MappingProxyType({}),
        shares: Mapping[str, Sharing] = MappingProxyType({}),
    ) -> None:
        self.events: list[dict[str, Any]] = []
        recovery = RecoveryConfig(backoff_seconds=0.0, bad_samples=bad_samples)
        place = PlacementConfig(
            reward=ZERO_3, **{role: RoleConfig(offload_between_phases=kind) for role, kind in rests.items()}
        )
        recipe = Recipe(name="x", rewards={}, recovery=recovery, placement=place)
        supervisor = Supervisor(recipe, lambda kind, **details: self.events.append({"kind": kind, **details}))
        placement = Placement(recipe, "cpu", "ppo", 0)
        self.folder = folder
        self.groups = {role: Group(role, RANKS[role], placement, folder, supervisor) for role in ("policy", *roles)}
        for role, group in self.groups.items():
            group.sharing = shares.get(role, group.sharing)
            group.start(Role, folder, role, dies)
        for group in self.groups.values():
            group.ready()
            supervisor.serve(group.names)
        engines: Any = SimpleNamespace(
            generate=self._generate,
            mark_outdated=lambda version: None,
            serving=[],
            wait_for_started=lambda context: [engine],
            backend="",
        )
        engine = SimpleNamespace(name="rollout engine 0", is_started=True, actor=None)
        engines.wake = lambda part, who, context: self.note(f"wake {part}")
        engines.verify = lambda whole, sent, version, context: engines.serving.append(engine)
        self.actors = RunActors(recipe, "", self.groups, engines, supervisor)

    def note(self, what: str) -> None:
        with (self.folder / "asked").open("a") as file:
            file.write(f"{what}\n")

    def asked(self) -> list[str]:
        """What was asked of the roles, and of the engine, since this was called last."""
        path = self.folder / "asked"
        lines = path.read_text().replace(" rank 0", "").splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def _generate(
        self, chosen: Sequence[int], seeds: Sequence[int], context: PhaseContext
    ) -> Iterator[tuple[Any, BlockSummary]]:
        """The blocks, backwards; the first prompt of each has no answer."""
        assert seeds == range(len(chosen))
        for block in BLOCKS[::-1]:
            places = tuple(chosen.index(prompt) for prompt in block)
            faults = ((block[0], "too long"),)
            yield (
                packed(block),
                BlockSummary(stream="", tokens=BIG, positions=places, set_aside=places[:1], faults=faults),
            )

    def send(self, *roles: str) -> Scoring:
        """The scoring by these roles, to which every block was sent."""
        scorers = [
            ScoringMethod(
                group=self.groups[role], method="scores", result_spec=ResultSpec(kind=role), unit_ranks=RANKS[role]
            )
            for role in roles
        ]
        scoring = Scoring(self.actors, CONTEXT, 9, scorers)
        for block in BLOCKS:
            scoring.send(Block(rollouts=packed(block), samples=len(block), set_aside=0, tokens=BIG))
        return scoring

    def scores(self, *roles: str) -> list[np.ndarray]:
        """What each role says of each block."""
        scored = self.send(*roles).wait_for_results()
        values = ray.get(scored.refs)
        assert [block.prompt_ids.tolist() for block in values[: len(BLOCKS)]] == list(BLOCKS)
        parts, found = iter(values[len(BLOCKS) :]), {}
        for unit in scored.units:
            [block] = unit.blocks
            found[block, unit.scorer] = join_samples(list(islice(parts, unit.parts)), len(BLOCKS[block]))
        return [found[block, scorer] for block in range(len(BLOCKS)) for scorer in range(len(roles))]

    def units(
        self, role: str, sizes: Sequence[int], streams: Sequence[str], samples: int = 99, **by: int
    ) -> list[tuple[int, ...]]:
        """The units of blocks 0, 1, 2, ... of so many tokens that a role got, in the order in which they were sent."""
        scorer = ScoringMethod(
            group=self.groups[role], method="scores_alone", result_spec=ResultSpec(kind="score"), **by
        )
        scoring = Scoring(self.actors, CONTEXT, samples, [scorer])
        for number, (size, stream) in enumerate(zip(sizes, streams, strict=True)):
            scoring.send(Block(rollouts=packed([number]), samples=1, set_aside=0, tokens=size, stream=stream))
        return [unit.blocks for unit in scoring.wait_for_results().units]

    def times(self, name: str, block: int) -> int:
        """How often a rank was asked for a block."""
        return (self.folder / "asked").read_text().splitlines().count(f"{name}: {block}")

    def kinds(self) -> list[tuple[str, str]]:
        return [(event["kind"], event["member"]) for event in self.events if "member" in event]


@pytest.fixture
def actors(local_ray: None, tmp_path: Path) -> Iterator[Any]:
    """Starts actors, and ends them."""
    crews = []

    def make(*arguments: Any, **options: Any) -> Small:
        crews.append(Small(tmp_path, *arguments, **options))
        return crews[-1]

    yield make
    for each in crews:
        for group in each.groups.values():
            group.stop()


def test_what_a_dead_rank_had_not_finished_is_sent_again_and_nothing_else(actors: Any) -> None:
    small = actors(["reward", "reference"], ("reward", 1, 20))
    found = small.scores("reward", "reference")
    assert [scores.tolist() for scores in found] == [[*block] for block in BLOCKS for _ in range(2)]
    for rank in (0, 1):
        assert small.times(f"reward rank {rank}", 10) == 1, "finished before the death"
    assert small.times("reward rank 1", 20) == 2
    assert small.times("reward rank 1", 30) == 1, "it died before it came to that"
    assert [small.times("reference rank 0", block[0]) for block in BLOCKS] == [1, 1, 1], "it is another role"
    assert small.events[0]["samples_redone"] == 2 + 4
    assert sorted(small.kinds()) == [
        ("actor_died", "reward rank 1"),
        ("actor_replaced", "reward rank 0"),
        ("actor_replaced", "reward rank 1"),
    ]


def test_neighbours_in_a_stream_are_scored_together_as_many_as_fill_a_row(actors: Any) -> None:
    """Rows of 10 tokens. Stream a: 4 + 4, then 6 alone, as another would not fit. The rest, 1 of a and 3 + 3 of b."""
    small = actors(["reference"], ("nobody", 0, 0))
    sizes, streams = [4, 3, 4, 6, 3, 1], ["a", "b", "a", "a", "b", "a"]
    assert small.units("reference", sizes, streams, unit_tokens=10) == [(0, 2), (3,), (5, 1, 4)]
    assert small.asked() == ["reference: unit [0, 2]", "reference: unit [3]", "reference: unit [5, 1, 4]"]


@pytest.mark.parametrize(
    ("budget", "ranks", "stage", "tokens"), [(320, 4, 1, 2048), (4096, 4, 1, 4096), (320, 2, 3, 4096)]
)
def test_a_unit_of_short_rows_has_several_for_each_rank(budget: int, ranks: int, stage: Any, tokens: int) -> None:
    """2,048 tokens for each rank that gets a part: one rank, or under ZeRO-3 all."""
    role = RoleConfig(ranks=ranks, zero_stage=stage, micro_batch_tokens=budget)
    group: Any = None
    assert ScoringMethod.by_role(group, "scores", ResultSpec(kind="score"), role).unit_tokens == tokens


def test_a_small_step_has_units_of_fewer_samples_so_that_all_ranks_have_work(actors: Any) -> None:
    """Two units for each of two ranks: of 8 samples, 2 each; where both take every unit, one that fills the row."""
    small = actors(["reward"], ("nobody", 0, 0))
    pairs = [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert sorted(small.units("reward", [1] * 8, [""] * 8, samples=8, unit_tokens=100)) == pairs
    assert small.units("reward", [1] * 8, [""] * 8, samples=8, unit_tokens=100, unit_ranks=2) == [tuple(range(8))]


def test_a_unit_goes_to_the_rank_that_has_got_the_fewest_tokens(actors: Any) -> None:
    """5 to the first, 2 and 2 to the second, and 9 to the second, which has 4 then."""
    small = actors(["reward"], ("nobody", 0, 0))
    units = small.units("reward", [5, 2, 2, 9, 1], [""] * 5)
    assert sorted(units) == [(0,), (1,), (2,), (3,), (4,)]
    assert sorted(small.asked()) == [
        "reward rank 1: unit [1]", "reward rank 1: unit [2]", "reward rank 1: unit [3]", "reward: unit [0]",
        "reward: unit [4]",
    ]  # fmt: skip


def test_a_role_that_has_learned_something_is_not_replaced_here(actors: Any) -> None:
    small = actors(["reference"], ("policy", 0, 20))
    with pytest.raises(LostError) as caught:
        small.scores("policy", "reference")
    assert caught.value.names == ("policy rank 0",)
    assert small.times("policy rank 0", 20) == 1 and small.events == []


STATES, ALL = "offload ['states']", "offload ['states', 'weights']"


def test_roles_that_make_room_score_one_by_one(actors: Any) -> None:
    small = actors(["reference", "critic"], ("nobody", 0, 0), rests={"reference": "all", "critic": "all"})
    kinds = {role: group.offload_mode for role, group in small.groups.items()}
    assert kinds == {"policy": None, "reference": "all", "critic": "all"}
    found = small.scores("reference", "policy", "critic")
    assert [scores.tolist() for scores in found] == [[*block] for block in BLOCKS for _ in range(3)]
    blocks = [block[0] for block in BLOCKS]
    of_policy, of_reference, of_critic = (
        [f"{role}: {block}" for block in blocks] for role in ("policy", "reference", "critic")
    )
    told = small.asked()
    assert [line for line in told if line in of_policy] == of_policy, "it waits for nobody"
    others = [line for line in told if line not in of_policy]
    assert others == [*of_reference, f"reference: {ALL}", *of_critic, f"critic: {ALL}"]


@pytest.mark.parametrize("after", [True, False])
def test_roles_on_the_same_gpus_score_one_by_one(after: bool, actors: Any) -> None:
    """Whether the engines are on these GPUs too, so that all wait for the end of the rollout, or not."""
    roles = ("policy", "reference", "critic")
    shares = dict.fromkeys(roles, Sharing(key="policy", is_after_rollout=after))
    small = actors(roles[1:], ("nobody", 0, 0), rests={"critic": "states"}, shares=shares)
    found = small.scores("reference", "policy", "critic")
    assert [scores.tolist() for scores in found] == [[*block] for block in BLOCKS for _ in range(3)]
    expected = [f"{role}: {block[0]}" for role in ("reference", "policy", "critic") for block in BLOCKS]
    assert small.asked() == [*expected, f"critic: {STATES}"]


def test_a_role_on_the_engines_gpus_scores_nothing_during_the_rollout(actors: Any) -> None:
    small = actors(["reference"], ("nobody", 0, 0), shares={"reference": Sharing(key="policy", is_after_rollout=True)})
    scoring = small.send("policy", "reference")
    ray.get(small.groups["reference"].call("update", 0, 0))  # the actor has worked off what it was sent before
    assert not any(small.times("reference rank 0", block[0]) for block in BLOCKS)
    scoring.wait_for_results()
    assert all(small.times("reference rank 0", block[0]) for block in BLOCKS)


def test_a_frozen_role_that_dies_while_it_makes_room_is_replaced(actors: Any) -> None:
    small = actors(["reference"], ("reference", 0, 2), rests={"reference": "all"})
    found = small.scores("reference")
    assert [scores.tolist() for scores in found] == [[*block] for block in BLOCKS]
    assert small.kinds() == [("actor_died", "reference rank 0"), ("actor_replaced", "reference rank 0")]
    assert small.asked()[-2:] == [f"reference: {ALL}"] * 2, "who takes its place makes room as well"


def test_critic_and_policy_update_in_turn_and_the_policy_leaves_after_the_publish(actors: Any) -> None:
    small = actors(["critic"], ("nobody", 0, 0), rests={"policy": "all", "critic": "all"})
    small.actors._connected = (None,)
    assert small.actors.update("update", 7) == {"critic": 7.0, "policy": 7.0}
    told = ["critic: update of step 7", f"critic: {ALL}", "policy: update of step 7", f"policy: {STATES}"]
    assert small.asked() == told
    small.actors.publish(8, CONTEXT)
    assert small.asked() == [
        f"policy: {STATES}", f"critic: {ALL}", "wake weights", "policy: publish", f"policy: {ALL}", "wake kv_cache",
    ]  # fmt: skip


def test_critic_and_policy_on_the_same_gpus_update_in_turn(actors: Any) -> None:
    """With offload mode ``states``, the default there."""
    modes, shares = (dict.fromkeys(("policy", "critic"), each) for each in ("states", Sharing(key="policy")))
    small = actors(["critic"], ("nobody", 0, 0), rests=modes, shares=shares)
    small.actors.update("update", 7)
    told = ["critic: update of step 7", f"critic: {STATES}", "policy: update of step 7", f"policy: {STATES}"]
    assert small.asked() == told


def test_roles_on_gpus_of_their_own_update_together(actors: Any) -> None:
    small = actors(["critic"], ("nobody", 0, 0), rests={"policy": "states", "critic": "states"})
    small.actors.update("update", 7)
    told = small.asked()
    assert sorted(told[:2]) == ["critic: update of step 7", "policy: update of step 7"]
    assert told[2:] == [f"critic: {STATES}", f"policy: {STATES}"]


def early_stop(small: Small) -> EarlyStopping:
    """Early stopping over answers to all prompts, which the held-out scorer scores twice as high."""
    config = EarlyStopConfig(scorer=RewardSourceConfig(model="x", weight=2.0))
    asked = [prompt for block in BLOCKS for prompt in block]
    unused: Any = None
    prompts = [Prompt(id=prompt, tokens=(prompt,)) for prompt in asked]
    return EarlyStopping(config, small.actors, PhaseTimer(), asked, prompts, unused, unused, unused)


def test_a_held_out_scorer_that_loses_a_rank_is_rebuilt_and_goes_on(actors: Any) -> None:
    """Not its first rank: the others are known by name as well. Prompts without an answer have no score."""
    small = actors(["judge"], ("judge", 1, 20))
    scores, answered = early_stop(small)._scores(7)
    nan = float("nan")
    np.testing.assert_array_equal(scores, [nan, 22, 24, nan, 42, nan, 62, 64, 66])
    assert answered.tolist() == [False, True, True, False, True, False, True, True, True]
    assert ("actor_died", "judge rank 1") in small.kinds() and ("actor_replaced", "judge rank 1") in small.kinds()
    assert small.times("judge rank 1", 30) == 1 and small.times("judge rank 1", 20) == 2
    aside = [event for event in small.events if event["kind"] == "sample_set_aside"]
    assert [(event["prompt"], event["reason"], event["phase"], event["step"]) for event in aside] == [
        (30, "too long", "judge", 6), (20, "too long", "judge", 6), (10, "too long", "judge", 6),
    ]  # fmt: skip
    [died] = [event for event in small.events if event["kind"] == "actor_died"]
    assert (died["phase"], died["step"]) == ("judge", 6), "after 7 steps: it is part of the last one"


def test_an_evaluation_bears_only_so_many_prompts_without_an_answer(actors: Any) -> None:
    with pytest.raises(MachineryError, match=r"3 samples were quarantined, more than recovery\.bad_samples = 2"):
        early_stop(actors(["judge"], ("nobody", 0, 0), bad_samples=2))._scores(7)


def test_rounds_join_to_one_list_of_blocks_and_one_of_results() -> None:
    first = ScoredBlocks(refs=["b0", "b1", "r0", "r1"], units=(ScoredUnit(scorer=0, blocks=(0, 1), parts=2),))
    second = ScoredBlocks(
        refs=["c0", "c1", "s0", "s1"],
        units=(ScoredUnit(scorer=0, blocks=(1,), parts=1), ScoredUnit(scorer=0, blocks=(0,), parts=1)),
    )
    joined = ScoredBlocks.join([first, second])
    assert joined.refs == ["b0", "b1", "c0", "c1", "r0", "r1", "s0", "s1"]
    assert [(unit.blocks, unit.parts) for unit in joined.units] == [((0, 1), 2), ((3,), 1), ((2,), 1)]
    assert ScoredBlocks.join([first]) == first
