"""What every stage of a run shares: the recipe, the machine, the console, and where its models are."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf.checkpoints.checkpoint import Checkpoint, latest_checkpoint
from rlhf.checkpoints.compatible import data_changes, differing_keys, require_same, require_same_data
from rlhf.config.load import recipe_digest, to_yaml
from rlhf.config.schema import TRAINED, Recipe
from rlhf.data import stages
from rlhf.data.chat import ChatFormat
from rlhf.data.read import digest_of
from rlhf.data.report import write_bad_rows
from rlhf.data.stages import StageData, texts
from rlhf.data.template import DATE, template_date
from rlhf.device import Device
from rlhf.errors import Stopped, UserError
from rlhf.models.folder import from_folder, load_tokenizer, read_facts
from rlhf.models.saving import try_saving_tokenizer
from rlhf.records import DataFile
from rlhf.recovery.stop import StopRequest, end_within
from rlhf.storage.durable import write_atomically
from rlhf.tracking.console import Console
from rlhf.tracking.run_folder import RunFolder
from rlhf.types import Example, ModelFacts, Pair, Prompt

DEPENDS_ON: Mapping[str, tuple[str, ...]] = {
    "sft": ("seed", "model", "data", "sft"),
    "reward": ("seed", "model", "data", "sft", "reward"),
    "dpo": ("seed", "model", "data", "sft", "dpo"),
    "ppo": (
        "seed",
        "deterministic",
        "model",
        "data",
        "sft",
        "reward",
        "rewards",
        "ppo",
        "algorithm",
        "early_stop",
        "rollout",
    ),
}
"""Sections of the recipe that a stage's result depends on: with others changed, a finished stage is still the same."""


DATA_PATHS = ("data.path", "data.demonstrations", "data.preferences", "data.prompts")
"""Keys of the recipe that say where data is; what is there counts."""


@dataclass(kw_only=True)
class Session:
    """One command's run."""

    recipe: Recipe
    console: Console
    device: Device
    gpus: int
    stop: StopRequest | None = None
    """Whether the command is to end before it is done; None where nobody can ask for that."""
    today: Callable[[], date] = date.today
    """What day it is."""

    def check(self) -> None:
        """Called wherever the command waits.

        Raises:
            Stopped: it is to end. Should that take too long, the process ends by itself: no commit is ever half done.
        """
        reason = self.stop.reason() if self.stop is not None else None
        if self.stop is not None and reason is not None:
            end_within(self.stop.grace)
            raise Stopped(reason)

    @property
    def root(self) -> Path:
        """The run's folder, which holds one folder a stage."""
        return Path(self.recipe.runs_dir) / self.recipe.name

    @cached_property
    def base(self) -> Path:
        """The model that SFT starts from; made now when the recipe asks for one from nothing."""
        if self.recipe.model.path is not None:
            return Path(self.recipe.model.path).expanduser()
        assert self.recipe.model.scratch is not None
        folder = self.root / "base"
        made_from = recipe_digest(self.recipe, ("seed", "model", "data"))
        marker = folder / "made-from"
        if not marker.exists() or marker.read_text() != made_from:
            from rlhf.models.scratch import make_scratch  # seconds, and most runs have a model

            all_text = list(texts(self.recipe))  # bad data is refused before anything is removed
            shutil.rmtree(folder, ignore_errors=True)
            partial = self.root / "base.partial"
            make_scratch(self.recipe.model.scratch, all_text, partial, self.recipe.seed)
            (partial / marker.name).write_text(made_from)
            partial.rename(folder)
        return folder

    def digest(self, stage: str) -> str:
        """What stands for the configuration that a stage's result depends on.

        Where the stage is finished with settings that mean the same, it is the finished stage's own: keys of a later
        version at their defaults make no difference, nor do other paths to data whose content is compared.
        """
        own, run = recipe_digest(self.recipe, DEPENDS_ON[stage]), RunFolder(self.root, stage)
        finished = run.finished_digest()
        if finished in (None, own) or not run.config.is_file():
            return own
        paths = DATA_PATHS if run.finished_data() is not None else ()
        with suppress(UserError, UnicodeDecodeError):  # a configuration that cannot be read is another one
            then = run.config.read_text(encoding="utf-8")
            differ = differing_keys(then, to_yaml(self.recipe), DEPENDS_ON[stage])
            if all(key in paths for key, _, _ in differ):
                return str(finished)
        return own

    def model_of(self, stage: str, given: str | None, otherwise: Path | None) -> Path:
        """The folder of a stage's model: the one that the recipe gives, the finished stage's own, or another.

        Raises:
            UserError: the stage was finished with another configuration, or there is no model to start from.
        """
        if given is not None:
            return Path(given).expanduser()
        run = RunFolder(self.root, stage)
        run.require(self.digest(stage))
        if run.is_finished(self.digest(stage)):
            return run.model
        if otherwise is not None:
            return otherwise
        raise UserError(
            f"there is no model of the {stage} stage in {self.root}",
            "this stage starts from it",
            f"run `rlhf {stage}` with the same recipe first, run `rlhf pipeline`, or give "
            f"{'ppo.policy_init (in DPO, dpo.init)' if stage == 'sft' else 'rewards.model.model'} a model folder",
        )

    @property
    def policy_start(self) -> Path:
        """The policy and the reference before PPO."""
        pretrained = self.base if self.recipe.model.path else None
        return self.model_of("sft", self.recipe.ppo.policy_init, pretrained)

    @property
    def dpo_start(self) -> Path:
        """The policy before DPO, which is also its reference.

        Raises:
            UserError: there is none, or its tokens are not those of the run's tokenizer.
        """
        pretrained = self.base if self.recipe.model.path else None
        start = self.model_of("sft", self.recipe.dpo.init, pretrained)
        if self.recipe.dpo.init is not None:
            self.require_vocabulary("dpo.init", start)
        return start

    def _has_vocabulary(self, model: Path) -> bool:
        own = from_folder(AutoTokenizer, model, self.recipe.model)
        has_end = own.eos_token_id is not None  # an encoder's may have none: the policy's has one
        return has_end and own.get_vocab() == self.tokenizer.get_vocab()

    def require_vocabulary(self, key: str, start: Path) -> None:
        """Refuse a model that does not read the run's tokens.

        Raises:
            UserError: its tokenizer has other tokens.
        """
        if not self._has_vocabulary(start):
            raise UserError(
                f"{key} = {start} has another vocabulary than {self._vocabulary}",
                "text would be given to the model as tokens that mean something else to it",
                f"leave out {key}, or name a model with the tokenizer of {self._vocabulary}",
            )

    @property
    def reward_models(self) -> dict[str, Path]:
        """The folders of the reward's parts that are models, by name."""
        given = {name: source.model for name, source in self.recipe.reward_models.items()}
        return {name: self.model_of("reward", None if path == TRAINED else path, None) for name, path in given.items()}

    @property
    def judge_model(self) -> Path | None:
        """The folder of the model that watches for over-optimisation, where the recipe's judge is a model."""
        path = self.recipe.early_stop.scorer.model if self.recipe.early_stop else None
        return None if path is None else self.model_of("reward", None if path == TRAINED else path, None)

    @property
    def critic_start(self) -> Path:
        """What the critic starts from: what the recipe names, the first reward model, or the policy's start.

        It reads the policy's tokens: a reward model with another vocabulary cannot become one.

        Raises:
            UserError: the recipe names one with another vocabulary.
        """
        if self.recipe.ppo.critic_init is not None:
            start = Path(self.recipe.ppo.critic_init).expanduser()
            self.require_vocabulary("ppo.critic_init", start)
            return start
        fitting = (model for model in self.reward_models.values() if self._can_value(model))
        return next(fitting, self.policy_start)

    def _can_value(self, model: Path) -> bool:
        """Whether a critic can be made of a reward model: its tokens are the policy's, its head is linear."""
        from rlhf.models.classifier import inspect_classifier  # seconds, and only PPO has a critic

        return self._has_vocabulary(model) and inspect_classifier(model, self.recipe.model, own=False).is_linear

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The run's tokenizer: that of the policy, where PPO is given one, and of the base model otherwise."""
        return load_tokenizer(self._vocabulary, self.recipe.model, self.day)

    @cached_property
    def day(self) -> date:
        """The day that a chat template which asks for the date is told, in all stages and commands of the run."""
        return date.fromisoformat(self._day_file.read_text()) if self._day_file.exists() else self.today()

    @property
    def _day_file(self) -> Path:
        return self.root / DATE

    @property
    def _vocabulary(self) -> Path:
        given = self.recipe.ppo.policy_init
        return Path(given).expanduser() if given is not None else self.base

    @cached_property
    def facts(self) -> ModelFacts:
        """What the model's folder says: its context, the rows of its embedding, its end tokens."""
        return read_facts(self._vocabulary, self.recipe.model, self.tokenizer)

    @cached_property
    def chat(self) -> ChatFormat:
        """How conversations are written for the run's models, and which tokens end a response."""
        return ChatFormat(self.tokenizer, self.facts.end_tokens)

    @cached_property
    def demonstrations(self) -> StageData[Example]:
        """What SFT learns from."""
        return stages.demonstrations(self.recipe, self.chat, self.facts)

    @cached_property
    def preferences(self) -> StageData[Pair]:
        """What the reward model learns from."""
        return stages.preferences(self.recipe, self.chat, self.facts)

    @cached_property
    def prompts(self) -> StageData[Prompt]:
        """What the policy is asked."""
        return stages.prompts(self.recipe, self.chat, self.facts)

    def checkpoint(self, stage: str) -> Checkpoint | None:
        """The checkpoint from which an unfinished stage goes on; every byte of it was read and compared.

        Raises:
            UserError: it is damaged, or of another configuration.
        """
        run = RunFolder(self.root, stage)
        if run.is_finished(self.digest(stage)):
            return None
        checkpoint = latest_checkpoint(run.checkpoints)
        if checkpoint is not None and checkpoint not in self._verified:
            paths = DATA_PATHS if checkpoint.manifest.data is not None else ()  # their content is compared instead
            require_same(checkpoint, to_yaml(self.recipe), DEPENDS_ON[stage], paths)
            checkpoint.verify()
            self._verified.append(checkpoint)
        return checkpoint

    @cached_property
    def _verified(self) -> list[Checkpoint]:
        return []

    def read_data(self, stage: str) -> None:
        """Read what a stage needs, so that bad data is refused before anything is started or rebuilt."""
        RunFolder(self.root, stage).require(self.digest(stage))
        self.checkpoint(stage)
        try_saving_tokenizer(self.tokenizer)
        needed = {
            "sft": ["demonstrations"],
            "reward": ["demonstrations", "preferences"],
            "dpo": ["dpo_start", "preferences"],
            "ppo": ["prompts"],
        }
        for name in needed[stage]:
            getattr(self, name)
        self._require_same_data(stage)

    def files_of(self, stage: str) -> tuple[DataFile, ...]:
        """The data files that a stage reads, and the chat template that it reads them through."""
        parts = {
            "sft": ("demonstrations",),
            "reward": ("demonstrations", "preferences"),
            "dpo": ("preferences",),
            "ppo": ("prompts",),
        }
        data: list[StageData[Any]] = [getattr(self, name) for name in parts[stage]]  # of this stage alone
        template = self.recipe.model.chat_template
        files = [file for part in data for file in part.files]
        return tuple(dict.fromkeys([*files, *([digest_of(template)] if template else [])]))

    def changes_of_data(self, stage: str) -> list[str]:
        """What changed in a stage's data since it was finished or its checkpoint was made, one line a file."""
        checkpoint = self.checkpoint(stage)
        then = RunFolder(self.root, stage).finished_data() if checkpoint is None else checkpoint.manifest.data
        return data_changes(then, self.files_of(stage))

    def _require_same_data(self, stage: str) -> None:
        """Refuse data that changed since the stage was finished, or since its checkpoint, unless the recipe accepts it.

        Raises:
            UserError: it changed.
        """
        run, checkpoint = RunFolder(self.root, stage), self.checkpoint(stage)
        holder = f"the finished {stage} stage in {run.path}" if checkpoint is None else str(checkpoint.path)
        changes = self.changes_of_data(stage)
        judged = stage == "ppo" and checkpoint is not None and self.recipe.early_stop is not None
        if self.recipe.checkpoint.changed_data == "refuse" or judged:  # early_stop compares answers to the same prompts
            require_same_data(holder, changes, run.path)
        elif changes:
            self.console.print("\n  ".join([f"{holder} was made with other data, which is accepted:", *changes]))

    @property
    def longest(self) -> int:
        """Longest sequence in tokens that an engine meets: prompt and response."""
        return min(self.facts.context, self.recipe.data.max_prompt_length + self.recipe.rollout.max_response_length)

    def report_data(self, data: StageData[Any], run: RunFolder) -> None:
        """Show what was read, and keep with the run the list of bad rows and the day that its template is told."""
        self.console.print(data.report)
        if data.bad:
            write_bad_rows(run.path / "bad_rows.jsonl", data.bad)
        if template_date(self.tokenizer) is not None and not self._day_file.exists():
            write_atomically(self._day_file, self.day.isoformat())

    def end_tokens(self, folder: Path) -> list[int]:
        """Token ids that end a response: those of the data, and what else the settings of a folder's model name."""
        facts = self.facts if folder == self._vocabulary else read_facts(folder, self.recipe.model, self.tokenizer)
        return sorted(self.chat.ends | set(facts.end_tokens))
