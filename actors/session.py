"""The context that all stages of a command share: recipe, device, console, data, and the folders of models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from actors.ray_watch import RayWatch
from rlhf.checkpoints.compatible import (
    data_changes,
    describe_differences,
    differing_keys,
    require_same,
    require_same_data,
)
from rlhf.checkpoints.manifest import file_entries, find_faults, hash_files
from rlhf.checkpoints.store import Checkpoint, latest_checkpoint
from rlhf.config.load import recipe_digest, to_yaml
from rlhf.config.schema import TRAINED, Recipe, Stage
from rlhf.config.stages import DEPENDS_ON, MEMORY_KEYS, is_unpaired, stages_of
from rlhf.data import stages
from rlhf.data.chat import ChatFormat
from rlhf.data.read import digest_of
from rlhf.data.report import write_bad_rows
from rlhf.data.stages import StageData, texts
from rlhf.data.template import DATE, template_date
from rlhf.device import Device
from rlhf.errors import Stopped, UserError
from rlhf.feedback.project import load_demonstrations, load_labelled, load_preferences, load_prompts
from rlhf.models.folder import from_folder, load_tokenizer, read_facts
from rlhf.models.saving import try_saving_tokenizer
from rlhf.models.unloadable import require_weights
from rlhf.records import DataFile
from rlhf.recovery.last_resort import LastResort, unrecorded
from rlhf.recovery.stop import StopRequest, saved
from rlhf.run_state import StageState
from rlhf.storage.durable import write_atomically, written_folder
from rlhf.storage.reading import damaged, read_json, read_text, require_folder
from rlhf.tracking.console import Console
from rlhf.tracking.record_check import check_first_answers, check_kinds, check_record
from rlhf.tracking.run_folder import MODEL, RunFolder
from rlhf.types import Example, LabelledResponse, ModelFacts, Pair, Prompt

LARGE_MODEL = 8 * 2**30
"""Size in bytes from which the verification of a model is announced, because it takes seconds."""
BASE = "base"
"""Name of the run's subfolder with a randomly initialised model."""

HASHES = "hashes.json"
"""File in that folder with the hashes of the others."""

DATA_OF_STAGE: Mapping[str, tuple[str, ...]] = {
    "sft": ("demonstrations",),
    "reward": ("demonstrations", "judged"),
    "dpo": ("judged",),
    "ppo": ("prompts",),
}
"""Data that a stage reads: properties of ``Session``, or ``Session.judged``."""
DATA_PATHS = ("data.path", "data.demonstrations", "data.preferences", "data.prompts")
"""Keys of the recipe with paths to data: the data's content is compared instead of the paths."""


@dataclass(kw_only=True)
class Session:
    """Recipe, device, console, data and model folders of one command. Data is read on first access."""

    recipe: Recipe
    console: Console
    device: Device
    gpus: int
    stop: StopRequest | None = None
    """Stop requests (signals, time limit); None if the command does not support them."""
    last_resort: LastResort = field(default_factory=LastResort)
    """Ends the process where the main thread does not."""
    ray_watch: RayWatch = field(default_factory=RayWatch)
    """Watches Ray's own processes, once Ray is there."""
    today: Callable[[], date] = date.today
    """Returns the current date; replaced in tests."""

    def check(self) -> None:
        """Raise if the command should stop; called during every wait.

        Raises:
            Stopped: a stop was requested. A process that has not ended after the grace period is killed; an unfinished
                checkpoint is not committed.
            ClusterError: Ray itself failed.
        """
        self.ray_watch.check()
        reason = self.stop.reason() if self.stop is not None else None
        if self.stop is not None and reason is not None:
            self.stop.end_in_time()
            raise Stopped(reason)

    def end_stage(self) -> None:
        """Nothing of the last stage is unsaved, nor to be recorded in its folder."""
        self.last_resort.record = unrecorded
        if self.stop is not None:
            self.stop.unsaved = saved

    @property
    def root(self) -> Path:
        """The run's folder, with one subfolder per stage."""
        return Path(self.recipe.runs_dir) / self.recipe.name

    @cached_property
    def base(self) -> Path:
        """Folder of the model that SFT starts from; a randomly initialised one is created on first access."""
        if self.recipe.model.path is not None:
            # Not announced: the standard output of `rlhf generate` is only for answers.
            return self.verified(Path(self.recipe.model.path).expanduser(), is_announced=False)
        assert self.recipe.model.scratch is not None
        folder = self.root / BASE
        for place in (folder, self.root / f"{BASE}.partial"):
            require_folder(place, "move the file elsewhere, or give this run another name (name=...)")
        made_from = recipe_digest(self.recipe, ("seed", "model", "data"))
        marker = folder / "made-from"
        again = f"delete the folder {folder}: the same model is created again from the recipe's seed and data"
        if not marker.exists() or read_text(marker, again) != made_from:
            from rlhf.models.scratch import make_scratch  # a slow import that most runs do not need

            all_text = list(
                texts(self.recipe, load_demonstrations)
            )  # bad data must be refused before the old folder is removed
            with written_folder(folder) as partial:
                make_scratch(self.recipe.model.scratch, all_text, partial, self.recipe.seed)
                files = [asdict(entry) for entry in hash_files(partial)]
                write_atomically(partial / HASHES, json.dumps(files) + "\n")
                write_atomically(partial / marker.name, made_from)
        elif (folder / HASHES).exists():  # an earlier version recorded none
            self._verify_base(folder / HASHES, again)
        return folder

    def _verify_base(self, hashes: Path, again: str) -> None:
        """Check that the run's randomly initialised model is as it was created."""
        rows = read_json(hashes, list, again)
        try:
            files = file_entries(rows)
        except (TypeError, ValueError) as error:
            raise damaged(hashes, f"does not list the model's files: {error}", again) from error
        if wrong := find_faults(files, hashes.parent):
            raise damaged(hashes.parent / wrong[0].partition(" ")[0], wrong[0].partition(" ")[2], again)

    def is_finished(self, command: Stage) -> bool:
        """Whether all stages of a command are finished with this recipe."""
        stages = stages_of(self.recipe, command)
        return all(RunFolder(self.root, stage).is_finished(self.digest(stage)) for stage in stages)

    def digest(self, stage: str) -> str:
        """Digest of the configuration that a stage's result depends on.

        If the stage is finished with equivalent settings, this is the finished stage's digest: new keys with default
        values make no difference, nor do other paths to the same data.
        """
        own, run = recipe_digest(self.recipe, DEPENDS_ON[stage]), RunFolder(self.root, stage)
        finished = run.finished_digest()
        if finished in (None, own) or not run.config.is_file():
            return own
        may_differ = (*MEMORY_KEYS, *(DATA_PATHS if run.finished_data() is not None else ()))
        with suppress(OSError, UserError, UnicodeDecodeError):  # one that cannot be read counts as different
            then = run.config.read_text(encoding="utf-8")
            differ = differing_keys(then, to_yaml(self.recipe), DEPENDS_ON[stage])
            if all(key in may_differ for key, _, _ in differ):
                return str(finished)
        return own

    def _require_same(self, stage: str) -> None:
        """Check that a stage was not finished with another configuration.

        Raises:
            UserError: it was; the message names the keys that differ.
        """
        run, digest, differences = RunFolder(self.root, stage), self.digest(stage), ""
        if run.finished_digest() in (None, digest):
            return
        with suppress(OSError, UserError, UnicodeDecodeError):  # the configuration is missing or cannot be read
            then = run.config.read_text(encoding="utf-8")
            differences = describe_differences(then, to_yaml(self.recipe), DEPENDS_ON[stage])
        run.require(digest, f":{differences}" if differences else "")

    def model_of(self, stage: str, given: str | None, otherwise: Path | None) -> Path:
        """Folder of a stage's model: the recipe's (``given``), the finished stage's, or ``otherwise``.

        Raises:
            UserError: the stage was finished with another configuration, its model was changed, or no model exists.
        """
        if given is not None:
            return self.verified(Path(given).expanduser())
        self._require_same(stage)
        run = RunFolder(self.root, stage)
        if run.is_finished(self.digest(stage)):
            return self.verified(run.model)
        if otherwise is not None:
            return otherwise
        raise UserError(
            f"there is no model of the {stage} stage in {self.root}",
            "this stage starts from it",
            f"run `rlhf {stage}` with the same recipe first, run `rlhf pipeline`, or give "
            f"{'ppo.policy_init (in DPO, dpo.init)' if stage == 'sft' else 'rewards.model.model'} a model folder",
        )

    def verified(self, model: Path, is_announced: bool = True) -> Path:
        """Return a model's folder after comparing its files with the hashes of the stage that wrote them.

        Each folder is read once per command, by this process alone. A folder that no stage wrote, or one of an earlier
        version, which recorded no hashes, is returned unread.

        Raises:
            UserError: the folder has no weights in safetensors format, or a file was changed since the stage ended.
        """
        require_weights(model)
        if model.name != MODEL or model.absolute() in self._verified_models:
            return model
        run = RunFolder(model.parent.parent, model.parent.name)
        size = sum(entry.bytes for entry in run.finished_model())
        if is_announced and size >= LARGE_MODEL:
            self.console.print(f"verifying {model}: {size / 2**30:,.0f} GiB")
        run.verify_model()
        self.trust(model)
        return model

    def trust(self, model: Path) -> None:
        """Do not verify a model in this command: it was verified, or this command wrote it."""
        self._verified_models.add(model.absolute())

    @cached_property
    def _verified_models(self) -> set[Path]:
        return set()

    @property
    def policy_start(self) -> Path:
        """Folder of the initial policy of PPO, which is also the reference."""
        pretrained = self.base if self.recipe.model.path else None
        return self.model_of("sft", self.recipe.ppo.policy_init, pretrained)

    @property
    def dpo_start(self) -> Path:
        """Folder of the initial policy of DPO, which is also the reference.

        Raises:
            UserError: no model exists, or its vocabulary is not that of the run's tokenizer.
        """
        pretrained = self.base if self.recipe.model.path else None
        start = self.model_of("sft", self.recipe.dpo.init, pretrained)
        if self.recipe.dpo.init is not None:
            self.require_vocabulary("dpo.init", start)
        return start

    def _has_vocabulary(self, model: Path) -> bool:
        own = from_folder(AutoTokenizer, model, self.recipe.model)
        has_end = own.eos_token_id is not None  # an encoder's tokenizer may have no end token
        return has_end and own.get_vocab() == self.tokenizer.get_vocab()

    def require_vocabulary(self, key: str, start: Path) -> None:
        """Check that a model's vocabulary is the run's.

        Raises:
            UserError: the model has another vocabulary.
        """
        if not self._has_vocabulary(start):
            raise UserError(
                f"{key} = {start} has another vocabulary than {self.tokenizer_folder}",
                "the model would read the token ids as other text",
                f"{key}=null, or name a model with the tokenizer of {self.tokenizer_folder}",
            )

    def _require_vocabulary_of_sft(self) -> None:
        """Check that a finished SFT stage has the run's tokenizer: without ``model.path`` it is trained on the data.

        Raises:
            UserError: it has another vocabulary.
        """
        run = RunFolder(self.root, "sft")
        if (
            run.is_finished(self.digest("sft"))
            and self.base == self.tokenizer_folder
            and not self._has_vocabulary(run.model)
        ):
            raise UserError(
                f"the finished sft stage's model in {run.model} has another vocabulary than {self.base}",
                "prompts would be encoded as other text; the data changed from which the tokenizer was trained",
                "restore the recipe's data and its paths, or give this run another name (name=...)",
            )

    @property
    def reward_models(self) -> dict[str, Path]:
        """Folders of the rewards that are models, by name."""
        given = {name: source.model for name, source in self.recipe.reward_models.items()}
        return {name: self.model_of("reward", None if path == TRAINED else path, None) for name, path in given.items()}

    @property
    def held_out_model(self) -> Path | None:
        """Folder of the held-out scorer of ``early_stop``, if it is a model."""
        path = self.recipe.early_stop.scorer.model if self.recipe.early_stop else None
        return None if path is None else self.model_of("reward", None if path == TRAINED else path, None)

    @property
    def critic_start(self) -> Path:
        """Folder of the initial critic: the recipe's, the first suitable reward model, or the initial policy.

        The critic reads the policy's tokens, so it must have the same vocabulary.

        Raises:
            UserError: the model of ``ppo.critic_init`` has another vocabulary.
        """
        if self.recipe.ppo.critic_init is not None:
            start = self.verified(Path(self.recipe.ppo.critic_init).expanduser())
            self.require_vocabulary("ppo.critic_init", start)
            return start
        fitting = (model for model in self.reward_models.values() if self._can_initialise_critic(model))
        return next(fitting, self.policy_start)

    def _can_initialise_critic(self, model: Path) -> bool:
        """Whether a reward model can initialise the critic: it has the policy's vocabulary and a linear head."""
        from rlhf.models.classifier import inspect_classifier  # a slow import that only PPO needs

        return self._has_vocabulary(model) and inspect_classifier(model, self.recipe.model, own=False).is_linear

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The run's tokenizer: that of ``ppo.policy_init`` if given, else the base model's."""
        return load_tokenizer(self.tokenizer_folder, self.recipe.model, self.day)

    @cached_property
    def day(self) -> date:
        """Date for chat templates that use one, the same in all stages and commands of the run."""
        if not self._day_file.exists():
            return self.today()
        fix = f"write the day of the run's first command as YYYY-MM-DD, or delete {self._day_file}: today is then used"
        text = read_text(self._day_file, fix)
        try:
            return date.fromisoformat(text.strip())
        except ValueError as error:
            raise damaged(self._day_file, f"holds {text[:40]!r} and no date", fix) from error

    @property
    def _day_file(self) -> Path:
        return self.root / DATE

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of the run's tokenizer."""
        given = self.recipe.ppo.policy_init
        return self.verified(Path(given).expanduser()) if given is not None else self.base

    @cached_property
    def facts(self) -> ModelFacts:
        """Facts from the model's folder: context length, number of embedding rows, end tokens."""
        return read_facts(self.tokenizer_folder, self.recipe.model, self.tokenizer)

    @cached_property
    def chat(self) -> ChatFormat:
        """Chat format of the run's models, with the tokens that end a response."""
        return ChatFormat(self.tokenizer, self.facts.end_tokens)

    @cached_property
    def demonstrations(self) -> StageData[Example]:
        """Data of SFT."""
        return stages.demonstrations(self.recipe, self.chat, self.facts, load_demonstrations)

    @cached_property
    def preferences(self) -> StageData[Pair]:
        """Data of the reward-model stage and of DPO."""
        return stages.preferences(self.recipe, self.chat, self.facts, load_preferences)

    @cached_property
    def labelled(self) -> StageData[LabelledResponse]:
        """Unpaired labels of the reward-model stage and of KTO."""
        return stages.labelled(self.recipe, self.chat, self.facts, load_labelled)

    def judged(self, stage: str) -> StageData[Pair] | StageData[LabelledResponse]:
        """What people judged, as the reward-model stage or DPO reads it."""
        return self.labelled if is_unpaired(self.recipe, stage) else self.preferences

    @cached_property
    def prompts(self) -> StageData[Prompt]:
        """Prompts of PPO."""
        return stages.prompts(self.recipe, self.chat, self.facts, load_prompts)

    def checkpoint(self, stage: str) -> Checkpoint | None:
        """Return the checkpoint from which an unfinished stage resumes, after verifying its files.

        None if there is none. In an existing cluster only the files' sizes are verified here.

        Raises:
            UserError: the checkpoint is damaged, or of another configuration.
        """
        run = RunFolder(self.root, stage)
        if run.is_finished(self.digest(stage)):
            return None
        checkpoint = latest_checkpoint(run.checkpoints)
        if checkpoint is not None and checkpoint not in self._verified:
            paths = DATA_PATHS if checkpoint.manifest.data is not None else ()  # their content is compared instead
            require_same(checkpoint, to_yaml(self.recipe), DEPENDS_ON[stage], (*MEMORY_KEYS, *paths))
            if self.recipe.placement.ray_address is None:
                checkpoint.verify()
            else:  # the nodes of the cluster read the files in parallel, see ``verify_on_nodes``
                checkpoint.verify_sizes()
            self._verified.append(checkpoint)
        return checkpoint

    @cached_property
    def _verified(self) -> list[Checkpoint]:
        return []

    def read_data(self, stage: str) -> None:
        """Read and check data, checkpoint and tokenizer of a stage, before anything is started or rebuilt.

        Raises:
            UserError: one of them is unusable, or was made with another configuration.
        """
        run = RunFolder(self.root, stage)
        check_kinds(run)
        self._require_same(stage)
        if run.is_finished(self.digest(stage)):
            check_record(run)
            self.verified(run.model)
        elif (checkpoint := self.checkpoint(stage)) is not None:
            check_record(run, StageState.from_json(checkpoint.state()).sizes)
        try_saving_tokenizer(self.tokenizer)
        if stage == "dpo":
            _ = self.dpo_start  # checks its vocabulary
        if stage in ("dpo", "ppo"):
            self._require_vocabulary_of_sft()
        self._require_same_data(stage)  # reads the data
        if (checkpoint := self.checkpoint(stage)) is not None and not self.changes_of_data(stage):
            check_first_answers(run, StageState.from_json(checkpoint.state()).sizes)

    def files_of(self, stage: str) -> tuple[DataFile, ...]:
        """Data files that a stage reads, and its chat template file if one is configured."""
        data: list[StageData[Any]] = [
            self.judged(stage) if name == "judged" else getattr(self, name) for name in DATA_OF_STAGE[stage]
        ]  # reads only this stage's data
        template = self.recipe.model.chat_template
        files = [file for part in data for file in part.files]
        return tuple(dict.fromkeys([*files, *([digest_of(template)] if template else [])]))

    def changes_of_data(self, stage: str) -> list[str]:
        """Changes of a stage's data since it was finished or its checkpoint was made, one line per file."""
        checkpoint = self.checkpoint(stage)
        then = RunFolder(self.root, stage).finished_data() if checkpoint is None else checkpoint.manifest.data
        return data_changes(then, self.files_of(stage))

    def _require_same_data(self, stage: str) -> None:
        """Check that the data is that of the finished stage or of the checkpoint, unless the recipe accepts changes.

        Raises:
            UserError: the data changed, and ``checkpoint.changed_data`` refuses that.
        """
        run, checkpoint = RunFolder(self.root, stage), self.checkpoint(stage)
        holder = f"the finished {stage} stage in {run.path}" if checkpoint is None else str(checkpoint.path)
        changes = self.changes_of_data(stage)
        has_early_stop = stage == "ppo" and checkpoint is not None and self.recipe.early_stop is not None
        if self.recipe.checkpoint.changed_data == "refuse" or has_early_stop:  # it compares answers to the same prompts
            require_same_data(holder, changes, run.path)
        elif changes:
            self.console.print("\n  ".join([f"{holder} was made with other data, which is accepted:", *changes]))

    @property
    def longest(self) -> int:
        """Longest sequence of prompt and response in an engine, in tokens."""
        return min(self.facts.context, self.recipe.data.max_prompt_length + self.recipe.rollout.max_response_length)

    def report_data(self, data: StageData[Any], run: RunFolder) -> None:
        """Print the report on the data, before actors start; store bad rows and the date for chat templates."""
        self.console.print(data.report)
        if data.bad:
            write_bad_rows(listed := run.path / "bad_rows.jsonl", data.bad)
            self.console.print(f"rows that are not used are listed in {listed}")
        if template_date(self.tokenizer) is not None and not self._day_file.exists():
            write_atomically(self._day_file, self.day.isoformat())
        self.console.print(f"starting the actors of the {run.stage} stage")

    def end_tokens(self, folder: Path) -> list[int]:
        """Token ids that end a response: those of the chat format, and those in the settings of a folder's model."""
        facts = self.facts if folder == self.tokenizer_folder else read_facts(folder, self.recipe.model, self.tokenizer)
        return sorted(self.chat.ends | set(facts.end_tokens))
