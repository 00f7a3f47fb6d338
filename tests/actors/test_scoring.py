"""What becomes of blocks whose scorer dies: ranks that score, and die, as they are told; no model is needed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from actors.crew import Crew
from actors.group import Group
from actors.placement import Placement
from actors.rollout import Answered
from actors.scoring import Scorer, Scoring
from actors.supervisor import Supervisor
from actors.waiting import Moment
from actors.watch import Watcher
from rlhf.config.schema import EarlyStopConfig, Recipe, RecoveryConfig, RewardSourceConfig
from rlhf.errors import LostError, MachineryError
from rlhf.roles.assemble import Contribution
from rlhf.roles.forward import Share, join_samples
from rlhf.tracking.phases import PhaseTimer
from rlhf.types import FinishReason, Prompt, Rollout, RolloutBlock
from rlhf.zero.process_group import Rank

MOMENT = Moment(phase="score", step=2)
BLOCKS = ([10, 11, 12], [20, 21], [30, 31, 32, 33])
"""Prompts of each block; a block is known by its first."""
RANKS = {"policy": 1, "reference": 1, "reward": 2, "judge": 2}


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

    def scores(self, block: RolloutBlock) -> Share:
        first = int(block.prompt_ids[0])
        with (self.folder / "asked").open("a") as file:
            file.write(f"{self.role} rank {self.rank.rank}: {first}\n")
        self._die_of(first)
        mine = np.arange(self.rank.rank, len(block), self.rank.world)
        return Share(samples=mine, values=block.prompt_ids[mine].astype(np.float32))

    def _die_of(self, block: int) -> None:
        mark = self.folder / "died"
        if self.dies == (self.role, self.rank.rank, block) and not mark.exists():
            mark.touch()
            time.sleep(0.5)  # whoever waits has taken in what was finished before
            os._exit(1)


class Small:
    """A policy and other roles, which all score, one rank of which dies of a block; and what is reported of it."""

    def __init__(self, folder: Path, roles: Sequence[str], dies: tuple[str, int, int], bad_samples: int = 100) -> None:
        self.events: list[dict[str, Any]] = []
        recipe = Recipe(name="x", rewards={}, recovery=RecoveryConfig(backoff_seconds=0.0, bad_samples=bad_samples))
        supervisor = Supervisor(recipe, lambda kind, **details: self.events.append({"kind": kind, **details}))
        placement = Placement(recipe, "cpu", "ppo", 0)
        self.folder = folder
        self.groups = {role: Group(role, RANKS[role], placement, folder, supervisor) for role in ("policy", *roles)}
        for role, group in self.groups.items():
            group.start(Role, folder, role, dies)
        for group in self.groups.values():
            group.ready()
            supervisor.serve(group.names)
        engines: Any = SimpleNamespace(generate=self._generate)
        self.crew = Crew(recipe, "", self.groups, engines, supervisor)

    def _generate(self, chosen: Sequence[int], seeds: Sequence[int], moment: Moment) -> Iterator[tuple[Any, Answered]]:
        """The blocks, backwards; the first prompt of each has no answer."""
        assert seeds == range(len(chosen))
        for block in BLOCKS[::-1]:
            places = tuple(chosen.index(prompt) for prompt in block)
            yield packed(block), Answered(places=places, set_aside=places[:1], faults=((block[0], "too long"),))

    def scores(self, *roles: str) -> list[np.ndarray]:
        """What each role says of each block."""
        scorers = [
            Scorer(group=self.groups[role], method="scores", contribution=Contribution(kind="", ranks=RANKS[role]))
            for role in roles
        ]
        scoring = Scoring(self.crew, MOMENT, scorers)
        for block in BLOCKS:
            scoring.send(packed(block), len(block))
        parts, found = iter(ray.get(scoring.settle())), []
        for block in BLOCKS:
            assert next(parts).prompt_ids.tolist() == block
            found += [join_samples([next(parts) for _ in range(RANKS[role])], len(block)) for role in roles]
        return found

    def times(self, name: str, block: int) -> int:
        """How often a rank was asked for a block."""
        return (self.folder / "asked").read_text().splitlines().count(f"{name}: {block}")

    def kinds(self) -> list[tuple[str, str]]:
        return [(event["kind"], event["member"]) for event in self.events if "member" in event]


@pytest.fixture
def crew(local_ray: None, tmp_path: Path) -> Iterator[Any]:
    """Makes a crew, and ends it."""
    crews = []

    def make(*arguments: Any, **options: Any) -> Small:
        crews.append(Small(tmp_path, *arguments, **options))
        return crews[-1]

    yield make
    for each in crews:
        for group in each.groups.values():
            group.stop()


def test_what_a_dead_rank_had_not_finished_is_sent_again_and_nothing_else(crew: Any) -> None:
    small = crew(["reward", "reference"], ("reward", 1, 20))
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


def test_a_role_that_has_learned_something_is_not_replaced_here(crew: Any) -> None:
    small = crew(["reference"], ("policy", 0, 20))
    with pytest.raises(LostError) as caught:
        small.scores("policy", "reference")
    assert caught.value.names == ("policy rank 0",)
    assert small.times("policy rank 0", 20) == 1 and small.events == []


def judge(small: Small) -> Watcher:
    """A watch over answers to all prompts, which the crew's judge scores twice as high."""
    config = EarlyStopConfig(scorer=RewardSourceConfig(function="x:y", weight=2.0))
    asked = [prompt for block in BLOCKS for prompt in block]
    unused: Any = None
    return Watcher(config, small.crew, PhaseTimer(), asked, unused, unused, unused)


def test_a_judge_that_loses_a_rank_is_rebuilt_and_goes_on(crew: Any) -> None:
    """Not its first rank: the others are known by name as well. Prompts without an answer have no score."""
    small = crew(["judge"], ("judge", 1, 20))
    scores, answered = judge(small)._scores(7)
    nan = float("nan")
    np.testing.assert_array_equal(scores, [nan, 22, 24, nan, 42, nan, 62, 64, 66])
    assert answered.tolist() == [False, True, True, False, True, False, True, True, True]
    assert ("actor_died", "judge rank 1") in small.kinds() and ("actor_replaced", "judge rank 1") in small.kinds()
    assert small.times("judge rank 1", 30) == 1 and small.times("judge rank 1", 20) == 2
    aside = [event for event in small.events if event["kind"] == "sample_set_aside"]
    assert [(event["prompt"], event["reason"], event["phase"], event["step"]) for event in aside] == [
        (30, "too long", "judge", 7), (20, "too long", "judge", 7), (10, "too long", "judge", 7),
    ]  # fmt: skip


def test_a_judgement_bears_only_so_many_prompts_without_an_answer(crew: Any) -> None:
    with pytest.raises(MachineryError, match=r"3 samples were set aside, more than recovery\.bad_samples = 2"):
        judge(crew(["judge"], ("nobody", 0, 0), bad_samples=2))._scores(7)
