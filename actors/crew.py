"""All actors of a PPO run: started together, ready together, stopped together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.engines import Engine, Engines
from actors.group import Group
from actors.placement import Placement
from actors.scoring import Scorer
from actors.supervisor import Supervisor
from actors.waiting import START, Moment, fetch, wait
from actors.weight_client import EngineClient
from actors.worker import Builder
from rlhf.algorithms.controller import AlgorithmState
from rlhf.config.schema import Recipe
from rlhf.device import Device
from rlhf.errors import LostError
from rlhf.placement.pools import turns
from rlhf.roles.assemble import Batch, BatchReport, Contribution, assemble
from rlhf.types import UNVERIFIED, Prompt
from rlhf.weights.fingerprint import Fingerprint

POLICY, CRITIC = "rlhf.roles.policy:PolicyRole", "rlhf.roles.critic:CriticRole"
REFERENCE, REWARD = "rlhf.roles.reference:ReferenceRole", "rlhf.roles.reward:make_reward"
CLIENT_SHARE = 0.5
"""Part of the policy's own deadline that it gives an engine: the late one is the engine then, not the policy."""


class Crew:
    """The actors of PPO. ``tokenizer`` is the policy's folder; ``rewards`` are by the names of the reward's parts.

    ``judge`` is who watches for over-optimisation, where the recipe asks for that. Without a group of its own for the
    reference, the policy is its own, with its adapters off.
    """

    def __init__(
        self, recipe: Recipe, tokenizer: str, groups: Mapping[str, Group], engines: Engines, supervisor: Supervisor
    ) -> None:
        self.recipe, self.tokenizer, self.groups = recipe, tokenizer, groups
        self.engines, self.supervisor = engines, supervisor
        self.policy, self.critic = groups["policy"], groups.get("critic")
        self.reference, self.judge = groups.get("reference"), groups.get("judge")
        self.rewards = {name: groups[_reward(name)] for name in recipe.rewards}
        self.version = UNVERIFIED
        """Of the weights that the policy holds."""
        self._connected: tuple[ActorHandle, ...] = ()
        engines.heal = self._heal

    @property
    def trained(self) -> dict[str, Group]:
        """The groups that hold what is trained, by role: the others can be made again from files."""
        return {name: group for name, group in (("policy", self.policy), ("critic", self.critic)) if group is not None}

    @property
    def networks(self) -> dict[str, Group]:
        """The groups that hold networks, by name: functions and services do not."""
        scorers = {_reward(name): source for name, source in self.recipe.rewards.items()}
        if self.recipe.early_stop is not None:
            scorers["judge"] = self.recipe.early_stop.scorer
        return {
            name: group for name, group in self.groups.items() if name not in scorers or scorers[name].model is not None
        }

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """Who scores a block, by which method, and what comes of it."""
        reference, method = (self.reference, "logprobs") if self.reference else (self.policy, "reference_logprobs")
        scorers = [(group, "scores", "score", name) for name, group in self.rewards.items()]
        scorers += [(self.policy, "logprobs", "old_logprobs", ""), (reference, method, "ref_logprobs", "")]
        if self.critic is not None:
            scorers.append((self.critic, "values", "values", ""))
        return tuple(
            Scorer(
                group=group,
                method=method,
                contribution=Contribution(kind=kind, ranks=len(group.workers), name=name),
            )
            for group, method, kind, name in scorers
        )

    def assemble(
        self, step: int, state: AlgorithmState, parts: Sequence[ray.ObjectRef]
    ) -> tuple[ray.ObjectRef, BatchReport]:
        """Have the policy's first rank put blocks and scores together.

        Returns a reference to the experience, and its report.
        """
        contributions = tuple(scorer.contribution for scorer in self.scorers)
        batch = Batch(recipe=self.recipe, tokenizer=self.tokenizer, step=step, state=state, contributions=contributions)
        experience, report = self.policy.workers[0].run.options(num_returns=2).remote(assemble, batch, *parts)
        moment = Moment(phase="advantages", step=step)
        return experience, fetch(report, self.policy.names[0], moment, self.supervisor.patience)

    def update(self, experience: ray.ObjectRef, step: int) -> dict[str, float]:
        """Train critic and policy, at the same time where both have room; the policy waits while the critic warms up.

        Returns their metrics.
        """
        waits, moment = step < self.recipe.algorithm.critic_warmup_steps, Moment(phase="update", step=step)
        groups = [group for group in (self.critic, None if waits else self.policy) if group is not None]
        answers = []
        for turn in turns({group: group.resting or "none" for group in groups}):
            refs = [ref for group in turn for ref in group.call("update", experience, step)]
            names = [name for group in turn for name in group.names]
            answers += wait(refs, names, moment, self.supervisor.patience)
            self.rest(turn, moment, publishes=True)
        self.version = step + 1
        return {name: value for answer in answers for name, value in answer.items()}

    def rest(self, groups: Sequence[Group], moment: Moment, publishes: bool = False) -> None:
        """Have groups leave their GPUs to others, where they share them; a frozen one that is lost in it is replaced.

        Args:
            publishes: whether the policy's weights are needed at once.
        """
        for group in groups:
            try:
                group.rest(moment, keeps_weights=publishes and group is self.policy)
            except LostError as error:
                self.revive(self.supervisor.located(error), moment)

    def save(self, folder: Path, moment: Moment) -> None:
        """Write the policy's model. Where its weights make room for engines, these sleep meanwhile."""
        makes_room = self.policy.resting == "all" and self.engines.sleeps
        if makes_room:
            self.engines.sleep(moment)
        self.policy.ask("save", folder, moment=moment)
        self.policy.rest(moment)
        if makes_room:
            self.publish(self.version, replace(moment, phase="publish"))

    def publish(self, version: int, moment: Moment) -> None:
        """Send the policy's weights to the engines and have each prove that it holds them, before it serves.

        An engine that is lost on the way is replaced, and joins when it has started; one at least serves on return.
        """
        self.version = version
        self.engines.outdate(version)
        self._publish(moment)

    def _publish(self, moment: Moment) -> None:
        while not self.engines.serving:
            with self.supervisor.waiting():
                receiving = self.engines.admit(moment)
            self.rest(tuple(self.trained.values()), moment, publishes=True)
            self.engines.wake("weights", receiving, moment)
            receiving = [engine for engine in receiving if not engine.building]  # one may be lost in waking
            if not receiving:
                continue
            self._connect(receiving)
            sent, left_out = self._send(moment)
            self.rest([self.policy], moment)
            self._lose({receiving[place].name: kind for place, kind in left_out.items()}, moment)
            whole = [engine for place, engine in enumerate(receiving) if place not in left_out]
            self.engines.prove(whole, sent, self.version, moment)
            self.engines.wake("kv_cache", self.engines.serving, moment)

    def _send(self, moment: Moment) -> tuple[Fingerprint, Mapping[int, str]]:
        """Have the policy send its weights; returns what ``PolicyRole.publish`` does."""
        deadlines = self.supervisor.patience.deadlines
        known = dict(deadlines.longest)
        seconds = CLIENT_SHARE * self.supervisor.patience.seconds(self.policy.names[0], moment)
        sent, left_out = self.policy.ask("publish", seconds, moment=moment)[0]
        if left_out:
            deadlines.longest = known  # the wait for an engine that is lost is no measure of a publish
        return sent, left_out

    def _lose(self, left_out: Mapping[str, str], moment: Moment) -> None:
        """Replace engines that did not get all of the weights, by name and how each was lost."""
        for kind in sorted(set(left_out.values())):
            names = tuple(name for name in left_out if left_out[name] == kind)
            text = f"{', '.join(names)} {kind} during {moment}: not all of the weights were taken"
            self.engines.lose(LostError(text, names, kind), moment)

    def _heal(self, moment: Moment) -> None:
        """No engine serves: the first that starts is given the policy's weights.

        They are those that the others had; but where training went on meanwhile (``ppo.staleness``), one version newer.
        """
        with self.supervisor.waiting():
            self.engines.outdate(self.version)
            self._publish(replace(moment, phase="publish"))

    def _connect(self, engines: Sequence[Engine]) -> None:
        """Have the policy meet the engines that it has not met, or not in this company."""
        actors = tuple(engine.actor for engine in engines)
        if actors == self._connected:
            return
        moment, width = Moment(phase="connect"), self.recipe.rollout.tensor_parallel
        seconds = CLIENT_SHARE * self.supervisor.patience.seconds(self.policy.names[0], moment)
        client = EngineClient(actors, width, seconds)
        address, port = self.policy.meeting_point()
        self.policy.ask("connect", client, self.engines.backend, len(actors) * width, address, port, moment=moment)
        self._connected = actors

    def lost_groups(self, error: LostError) -> list[Group]:
        """The groups whose ranks were lost."""
        return [group for group in self.groups.values() if set(group.names) & set(error.names)]

    def frozen_groups(self, error: LostError) -> list[Group]:
        """The groups whose ranks were lost, if all of them can be made again from files.

        Raises:
            LostError: one of them cannot, or it is not known who was lost.
        """
        lost = self.lost_groups(error)
        if not lost or any(group in self.trained.values() for group in lost):
            raise error
        return lost

    def revive(self, error: LostError, moment: Moment, samples: int = 0) -> None:
        """Replace the ranks of frozen groups that lost one, and count it. ``samples`` are given to them again.

        Raises:
            LostError: others were lost as well, or it is not known who was.
        """
        groups = self.frozen_groups(error)
        mine = {name for group in groups for name in group.names}
        self.supervisor.lost(error.of(name for name in error.names if name in mine), moment, samples)
        for group in groups:
            self.rebuild(group)

    def rebuild(self, group: Group) -> None:
        """Have new ranks build what a group's ranks were built from."""
        if group is self.policy:
            self._connected = ()
        with self.supervisor.waiting():
            group.rebuild()
            group.rest(Moment(phase=START))
        if group not in self.trained.values():  # these have yet to be given what they had learned
            self.supervisor.serve(group.names)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a crew starts from: model folders, the engine's limits, the prompts, and where logs go.

    ``reward_models`` are the folders of the reward's parts that are models, by name; ``judge_model`` is that of a judge
    that is one. ``held_out`` are the prompts whose answers are judged; ``day`` is what chat templates are told.
    """

    policy: Path
    critic: Path
    reward_models: Mapping[str, Path]
    max_length: int
    end_tokens: Sequence[int]
    prompts: Sequence[Prompt]
    logs: Path
    judge_model: Path | None = None
    held_out: Sequence[Prompt] = ()
    day: date = field(default_factory=date.today)


@contextmanager
def crew(
    recipe: Recipe,
    start: Start,
    device: Device,
    gpus: int,
    supervisor: Supervisor,
    policy_role: Builder = POLICY,
) -> Iterator[Crew]:
    """Have all actors within the block, loaded and given their prompts; they end with it.

    Raises:
        MachineryError: an actor was lost in loading, or later where nobody replaces it.
    """
    placement = Placement(recipe, device, "ppo", gpus)
    with ExitStack() as stack, supervisor.diagnosed():
        stack.callback(placement.free)
        # Engines first: they take longest to start.
        engines = Engines(
            recipe, placement, start.policy, start.max_length, start.end_tokens, start.logs, supervisor, publishes=True
        )
        stack.callback(engines.stop)
        groups = _groups(recipe, placement, start.logs, supervisor, stack)
        if placement.engines_share:
            engines.ready(start.prompts)  # vLLM measures the free memory: nothing else may be loading
        _start(groups, recipe, start, policy_role, supervisor)
        if not placement.engines_share:
            engines.ready(start.prompts)
        yield Crew(recipe, str(start.policy), groups, engines, supervisor)


def _reward(name: str) -> str:
    """The group of a part of the reward."""
    return f"reward {name}"


def _groups(
    recipe: Recipe, placement: Placement, logs: Path, supervisor: Supervisor, stack: ExitStack
) -> dict[str, Group]:
    """A group for each role that the recipe has, by name, placed and not yet started; ``stack`` stops them."""
    groups: dict[str, Group] = {}

    def add(role: str, name: str, has_network: bool = True) -> None:
        ranks = getattr(recipe.placement, role).ranks if has_network else 1
        groups[name] = Group(name, ranks, placement, logs, supervisor)
        stack.callback(groups[name].stop)

    add("policy", "policy")
    if recipe.algorithm.has_critic:
        add("critic", "critic")
    if recipe.has_reference:
        add("reference", "reference")
    for name, source in recipe.rewards.items():
        add("reward", _reward(name), has_network=source.model is not None)
    if recipe.early_stop is not None:
        add("reward", "judge", has_network=recipe.early_stop.scorer.model is not None)
    return groups


def _builders(recipe: Recipe, start: Start, policy_role: Builder) -> dict[str, tuple[Any, ...]]:
    """What the ranks of each group hold, by the group's name: who builds it, and from what."""
    policy, prompts = str(start.policy), ray.put(start.prompts)
    builders: dict[str, tuple[Any, ...]] = {
        "policy": (policy_role, recipe, policy),
        "critic": (CRITIC, recipe, str(start.critic)),
        "reference": (REFERENCE, recipe, policy),
    }
    for name, source in recipe.rewards.items():
        folder = str(start.reward_models[name]) if source.model else None
        builders[_reward(name)] = (REWARD, recipe, source, policy, folder, prompts, start.day)
    if recipe.early_stop is not None:
        folder = str(start.judge_model) if start.judge_model else None
        scorer = recipe.early_stop.scorer
        builders["judge"] = (REWARD, recipe, scorer, policy, folder, start.held_out, start.day)
    return builders


def _start(
    groups: Mapping[str, Group], recipe: Recipe, start: Start, policy_role: Builder, supervisor: Supervisor
) -> None:
    """Have every group load what it holds, and wait until it has. Those that make room for each other take turns."""
    builders = _builders(recipe, start, policy_role)
    for turn in turns({name: group.resting or "none" for name, group in groups.items()}):
        for name in turn:
            groups[name].start(*builders[name])
        for name in turn:
            groups[name].ready()
            supervisor.serve(groups[name].names)
            groups[name].rest(Moment(phase=START))
