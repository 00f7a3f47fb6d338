"""The actor groups and engines of a PPO run: started together, ready together, stopped together."""

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
from actors.preload import PUBLISHING, ROLE_MODULES
from actors.scoring import ScoredBlocks, ScoringMethod
from actors.supervisor import Supervisor
from actors.waiting import START, PhaseContext, wait
from actors.weight_client import EngineClient
from actors.worker import Builder
from rlhf.algorithms.state import AlgorithmState
from rlhf.config.schema import Recipe, RewardSourceConfig
from rlhf.device import Device
from rlhf.errors import LostError
from rlhf.placement.pools import HELD_OUT_SCORER, turns
from rlhf.roles.assemble import BatchReport, ResultSpec, StepInputs, assemble
from rlhf.types import UNVERIFIED, Prompt
from rlhf.weights.aborts import at_fault
from rlhf.weights.fingerprint import Fingerprint

POLICY, CRITIC = "rlhf.roles.policy:PolicyRole", "rlhf.roles.critic:CriticRole"
REFERENCE, REWARD = "rlhf.roles.policy:ReferenceRole", "rlhf.roles.reward:make_reward"
CLIENT_FRACTION = 0.5
"""Fraction of the policy's deadline granted to an engine, so that a slow engine is reported and not the policy."""


class RunActors:
    """The actor groups and rollout engines of a PPO run.

    ``tokenizer_folder`` is the policy's folder. ``rewards`` maps the names of the recipe's rewards to groups;
    ``held_out_scorer`` is that of ``early_stop``, if configured. If ``reference`` is None, the policy with its adapters
    disabled is the reference.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer_folder: str,
        groups: Mapping[str, Group],
        engines: Engines,
        supervisor: Supervisor,
    ) -> None:
        self.recipe, self.tokenizer_folder, self.groups = recipe, tokenizer_folder, groups
        self.engines, self.supervisor = engines, supervisor
        self.policy, self.critic = groups["policy"], groups.get("critic")
        self.reference, self.held_out_scorer = groups.get("reference"), groups.get(HELD_OUT_SCORER)
        self.rewards = {name: groups[_reward(name)] for name in recipe.rewards}
        self.version = UNVERIFIED
        """Version of the policy's weights."""
        self._connected: tuple[ActorHandle, ...] = ()
        engines.restore_serving, engines.is_rolled_back = self._restore_serving, self._is_rolled_back

    @property
    def trained(self) -> dict[str, Group]:
        """Groups with trained weights, by role; all other groups can be rebuilt from files."""
        return {name: group for name, group in (("policy", self.policy), ("critic", self.critic)) if group is not None}

    @property
    def networks(self) -> dict[str, Group]:
        """Groups that hold a network, by name; rewards that are functions or services are left out."""
        scorers = {_reward(name): source for name, source in self.recipe.rewards.items()}
        if self.recipe.early_stop is not None:
            scorers[HELD_OUT_SCORER] = self.recipe.early_stop.scorer
        return {
            name: group for name, group in self.groups.items() if name not in scorers or scorers[name].model is not None
        }

    @property
    def scorers(self) -> tuple[ScoringMethod, ...]:
        """The groups that score each block of a step, the method that each runs, and the kind of its results."""
        reference, method = (self.reference, "logprobs") if self.reference else (self.policy, "reference_logprobs")
        place = self.recipe.placement
        scorers = [self.reward_scorer(name, self.rewards[name], source) for name, source in self.recipe.rewards.items()]
        networks = [(reference, method, "ref_logprobs", place.reference if self.reference else place.policy)]
        if self.recipe.algorithm.old_logprobs == "scoring":
            networks.insert(0, (self.policy, "logprobs", "old_logprobs", place.policy))
        if self.critic is not None:
            networks.append((self.critic, "values", "values", place.critic))
        scorers += [
            ScoringMethod.by_role(group, method, ResultSpec(kind=kind), role) for group, method, kind, role in networks
        ]
        return tuple(scorers)

    def reward_scorer(self, name: str, group: Group, source: RewardSourceConfig) -> ScoringMethod:
        """Scorer of a part of the reward, or of the held-out scorer."""
        role = None if source.model is None else self.recipe.placement.reward
        return ScoringMethod.by_role(group, "scores", ResultSpec(kind="score", name=name), role)

    def assemble(
        self, step: int, state: AlgorithmState, rounds: Sequence[ScoredBlocks]
    ) -> tuple[ray.ObjectRef, BatchReport]:
        """Assemble the blocks and scores of a step's rounds into the experience, on the policy's first rank.

        Returns a reference to the experience, and the batch's report.
        """
        scored = ScoredBlocks.join(rounds)
        result_specs = tuple(scorer.result_spec for scorer in self.scorers)
        batch = StepInputs(
            recipe=self.recipe,
            tokenizer_folder=self.tokenizer_folder,
            step=step,
            state=state,
            result_specs=result_specs,
            rounds=len(rounds),
        )
        task = self.policy.workers[0].run_on_values.options(num_returns=2)
        experience, report = task.remote(assemble, scored.refs, batch, scored.units)
        context = PhaseContext(phase="advantages", step=step)
        return experience, wait([report], self.policy.names[:1], context, self.supervisor.deadlines)[0]

    def update(self, experience: ray.ObjectRef, step: int) -> dict[str, float]:
        """Train critic and policy and return their metrics.

        Groups that share GPUs train one after another, the others in parallel. Before step ``critic_warmup_steps`` only
        the critic trains.
        """
        is_warmup, context = step < self.recipe.algorithm.critic_warmup_steps, PhaseContext(phase="update", step=step)
        groups = [group for group in (self.critic, None if is_warmup else self.policy) if group is not None]
        answers = []
        for turn in turns({group: group.sharing.key for group in groups}):
            refs = [ref for group in turn for ref in group.call("update", experience, step)]
            names = [name for group in turn for name in group.names]
            answers += wait(refs, names, context, self.supervisor.deadlines)
            self.offload(turn, context, publishes=True)
        self.version = step + 1
        return {name: value for answer in answers for name, value in answer.items()}

    def offload(self, groups: Sequence[Group], context: PhaseContext, publishes: bool = False) -> None:
        """Offload groups that have an offload mode; a frozen group that fails during this is replaced.

        Args:
            publishes: keep the policy's weights on the GPU, because a publish follows.
        """
        for group in groups:
            try:
                group.offload(context, keeps_weights=publishes and group is self.policy)
            except LostError as error:
                self.revive(self.supervisor.with_dead_actors(error), context)

    def save(self, folder: Path, context: PhaseContext) -> None:
        """Write the policy's model to a folder; engines on its GPUs sleep meanwhile if its offload mode is ``all``."""
        needs_gpu = self.policy.offload_mode == "all" and self.engines.sleeps
        if needs_gpu:
            self.engines.sleep(context)
        self.policy.ask("save", folder, context=context)
        self.policy.offload(context)
        if needs_gpu:
            self.publish(self.version, replace(context, phase="publish"))

    def publish(self, version: int, context: PhaseContext) -> None:
        """Send the policy's weights to the engines; each serves once its fingerprint equals the policy's.

        A failed engine is replaced, and joins when it has started. On return at least one engine serves.
        """
        self.version = version
        self.engines.mark_outdated(version)
        self._publish(context)

    def _publish(self, context: PhaseContext) -> None:
        while not self.engines.serving:
            self.offload(tuple(self.trained.values()), context, publishes=True)  # first: an engine that starts measures
            with self.supervisor.time_lost():
                receiving = self.engines.wait_for_started(context)
            self.engines.wake("weights", receiving, context)
            receiving = [engine for engine in receiving if engine.is_started]  # an engine may fail while waking
            if not receiving:
                continue
            self._connect(receiving)
            sent, left_out = self._send(context)
            self.offload([self.policy], context)
            if left_out:
                self._connected = ()  # a group of which one is lost cannot be used again
            self._replace_incomplete({receiving[index].name: kind for index, kind in left_out.items()}, context)
            complete = [engine for index, engine in enumerate(receiving) if index not in left_out]
            self.engines.verify(complete, sent, self.version, context)
            self.engines.wake("kv_cache", self.engines.serving, context)

    def _send(self, context: PhaseContext) -> tuple[Fingerprint, Mapping[int, str]]:
        """Have the policy send its weights; returns the result of ``PolicyRole.publish``."""
        deadlines = self.supervisor.deadlines.learned
        known = dict(deadlines.longest)
        seconds = CLIENT_FRACTION * self.supervisor.deadlines.seconds(self.policy.names[0], context)
        sent, left_out = self.policy.ask("publish", seconds, context=context)[0]
        if left_out:
            deadlines.longest = known  # time spent waiting for a failed engine must not lengthen the deadline
        return sent, left_out

    def _replace_incomplete(self, left_out: Mapping[str, str], context: PhaseContext) -> None:
        """Replace those at fault of the engines that did not receive all weights; by name, with kinds of failure."""
        left_out = at_fault(left_out)
        for kind in sorted(set(left_out.values())):
            names = tuple(name for name in left_out if left_out[name] == kind)
            reason = "not all weights were received"
            text = f"{', '.join(names)} {kind} during {context}: {reason}"
            self.engines.replace_lost(LostError(text, names, kind, reason, names), context)

    def _is_rolled_back(self, error: LostError) -> bool:
        """Whether a rank of a trained group is lost, so that the step is repeated."""
        return any(set(group.names) & set(error.names) for group in self.trained.values())

    def _restore_serving(self, context: PhaseContext) -> None:
        """Publish the policy's weights to the first engine that starts, because no engine serves.

        The weights have the version that the failed engines had, or the next one if training continued
        (``ppo.staleness``).
        """
        with self.supervisor.time_lost():
            self.engines.mark_outdated(self.version)
            self._publish(replace(context, phase="publish"))

    def _connect(self, engines: Sequence[Engine]) -> None:
        """Connect the policy to this set of engines, unless it is connected to exactly this set."""
        actors = tuple(engine.actor for engine in engines)
        if actors == self._connected:
            return
        context, width = PhaseContext(phase="connect"), self.recipe.rollout.tensor_parallel
        seconds = CLIENT_FRACTION * self.supervisor.deadlines.seconds(self.policy.names[0], context)
        client = EngineClient(actors, width, seconds, is_group=self.engines.backend == "nccl")
        address, port = self.policy.rendezvous_address()
        self.policy.ask("connect", client, self.engines.backend, len(actors) * width, address, port, context=context)
        self._connected = actors

    def lost_groups(self, error: LostError) -> list[Group]:
        """Groups with a lost rank."""
        return [group for group in self.groups.values() if set(group.names) & set(error.names)]

    def frozen_groups(self, error: LostError) -> list[Group]:
        """Groups with a lost rank, if all of them can be rebuilt from files.

        Raises:
            LostError: one of them is trained, or no lost rank is known.
        """
        lost = self.lost_groups(error)
        if not lost or self._is_rolled_back(error):
            raise error
        return lost

    def revive(self, error: LostError, context: PhaseContext, samples: int = 0) -> None:
        """Rebuild frozen groups with a lost rank, and count one restart. ``samples`` is how many are re-dispatched.

        Raises:
            LostError: a trained group was lost as well, or no lost rank is known.
        """
        groups = self.frozen_groups(error)
        self.supervisor.handle_loss(error, context, samples)
        for group in groups:
            self.rebuild(group)

    def rebuild(self, group: Group) -> None:
        """Replace a group's ranks with new ones, built from the same arguments."""
        if group is self.policy:
            self._connected = ()
        with self.supervisor.time_lost():
            group.rebuild()
            group.offload(PhaseContext(phase=START))
        if group not in self.trained.values():  # a trained group serves only after its state is restored
            self.supervisor.serve(group.names)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Inputs of a PPO run's actors: model folders, the engines' limits, the prompts, and the folder of the logs.

    ``reward_models`` maps the rewards that are models to folders; ``held_out_model`` is the folder of the held-out
    scorer if that is a model, ``held_out`` are that scorer's prompts. ``day`` is the date for chat templates.
    """

    policy: Path
    critic: Path
    reward_models: Mapping[str, Path]
    max_length: int
    end_tokens: Sequence[int]
    prompts: Sequence[Prompt]
    logs: Path
    held_out_model: Path | None = None
    held_out: Sequence[Prompt] = ()
    day: date = field(default_factory=date.today)


@contextmanager
def start_actors(
    recipe: Recipe,
    start: Start,
    device: Device,
    gpus: int,
    supervisor: Supervisor,
    policy_role: Builder = POLICY,
) -> Iterator[RunActors]:
    """Context in which all actors of a PPO run exist, loaded and with their prompts; stops them at its end.

    Raises:
        MachineryError: an actor failed during loading, or failed later and is not replaceable.
    """
    placement = Placement(recipe, device, "ppo", gpus, supervisor.deadlines.check)
    with ExitStack() as stack, supervisor.diagnosed():
        stack.callback(placement.release)
        # Engines first: they take longest to start.
        engines = Engines(
            recipe, placement, start.policy, start.max_length, start.end_tokens, start.logs, supervisor, publishes=True
        )
        stack.callback(engines.stop)
        groups = _groups(recipe, placement, start.logs, supervisor, stack)
        builders = _builders(recipe, start, policy_role)
        if placement.engines_share:  # vLLM measures free GPU memory: no other model may load meanwhile
            for name, group in groups.items():
                group.preload(builders[name][0])
            engines.ready(start.prompts)
        _start(groups, builders, supervisor)
        if not placement.engines_share:
            engines.ready(start.prompts)
        yield RunActors(recipe, str(start.policy), groups, engines, supervisor)


def _reward(name: str) -> str:
    """Name of a reward's group."""
    return f"reward {name}"


def _groups(
    recipe: Recipe, placement: Placement, logs: Path, supervisor: Supervisor, stack: ExitStack
) -> dict[str, Group]:
    """Create a group for each role of the recipe, by name, placed and not yet started; ``stack`` stops them."""
    groups: dict[str, Group] = {}

    def add(role: str, name: str, has_network: bool = True) -> None:
        ranks = getattr(recipe.placement, role).ranks if has_network else 1
        modules = (*ROLE_MODULES, *PUBLISHING) if role == "policy" else ROLE_MODULES
        groups[name] = Group(name, ranks, placement, logs, supervisor, modules)
        stack.callback(groups[name].stop)

    add("policy", "policy")
    if recipe.algorithm.has_critic:
        add("critic", "critic")
    if recipe.has_reference:
        add("reference", "reference")
    for name, source in recipe.rewards.items():
        add("reward", _reward(name), has_network=source.model is not None)
    if recipe.early_stop is not None:
        add("reward", HELD_OUT_SCORER, has_network=recipe.early_stop.scorer.model is not None)
    return groups


def _builders(recipe: Recipe, start: Start, policy_role: Builder) -> dict[str, tuple[Any, ...]]:
    """Builder of each group's ranks and its arguments, by the group's name."""
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
        folder = str(start.held_out_model) if start.held_out_model else None
        scorer = recipe.early_stop.scorer
        builders[HELD_OUT_SCORER] = (REWARD, recipe, scorer, policy, folder, start.held_out, start.day)
    return builders


def _start(groups: Mapping[str, Group], builders: Mapping[str, tuple[Any, ...]], supervisor: Supervisor) -> None:
    """Load all groups and wait for them. Groups with offload mode ``all`` load one after another."""
    alone = [name for name, group in groups.items() if group.offload_mode == "all"]
    for turn in ([name for name in groups if name not in alone], *([name] for name in alone)):
        for name in turn:
            groups[name].start(*builders[name])
        for name in turn:
            groups[name].ready()
            supervisor.serve(groups[name].names)
            groups[name].offload(PhaseContext(phase=START))
