"""Prepares the data of each stage, from the recipe to tokens: loaded, split by prompt, tokenised, and accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from rlhf.config.schema import DataConfig, Recipe, RewardSourceConfig
from rlhf.data.chat import ChatFormat, transcript
from rlhf.data.formats import load_demonstrations, load_labelled, load_preferences, load_prompts
from rlhf.data.lossy import remarks_on_lost_text, some_of
from rlhf.data.order import epoch_batches
from rlhf.data.report import describe
from rlhf.data.split import split_by_prompt, split_key
from rlhf.data.tokenise import (
    Row,
    Tokenised,
    describe_tokenised,
    tokenise_demonstrations,
    tokenise_labelled,
    tokenise_preferences,
    tokenise_prompts,
)
from rlhf.records import BadRow, DataFile, Demonstration, LabelledAnswer, Loaded, Preference, PromptRow, text_of
from rlhf.types import Example, LabelledResponse, ModelFacts, Pair, Prompt

R = TypeVar("R", bound=Row)
T = TypeVar("T")
WITHOUT_TEMPLATE = (
    "{:,} × messages written as a transcript, Human: ... Assistant: ...: the tokenizer has no chat template "
    "(model.chat_template=<Jinja file> sets one)"
)


@dataclass(frozen=True, kw_only=True)
class StageData(Generic[T]):
    """Tokens for training and for held-out evaluation; ``report`` states the outcome of every row."""

    train: tuple[T, ...]
    held_out: tuple[T, ...]
    bad: tuple[BadRow, ...]
    report: str
    files: tuple[DataFile, ...] = ()
    """The files that the rows were read from."""
    conversations: int = 0
    """Rows whose prompts are messages."""


Load = Callable[[DataConfig], Loaded[R]]
"""Loads the rows of a recipe; by default files, and a feedback project where the caller knows of these."""


def demonstrations(
    recipe: Recipe, chat: ChatFormat, facts: ModelFacts, load: Load[Demonstration] = load_demonstrations
) -> StageData[Example]:
    """Demonstrations of the SFT stage; without any, the chosen answers of the preferences."""
    loaded = load(_with_demonstrations(recipe.data))
    return _stage(
        recipe,
        loaded,
        chat,
        "demonstrations",
        lambda rows: tokenise_demonstrations(rows, chat, recipe.data, facts, recipe.sft.train_on),
    )


def preferences(
    recipe: Recipe, chat: ChatFormat, facts: ModelFacts, load: Load[Preference] = load_preferences
) -> StageData[Pair]:
    """Comparisons of the reward stage. A tie in both orders is never held out: one of the two would be wrong."""
    loaded = load(recipe.data)
    return _stage(
        recipe,
        loaded,
        chat,
        "preferences",
        lambda rows: tokenise_preferences(rows, chat, recipe.data, facts),
        recipe.data.preference_fraction,
    )


def labelled(
    recipe: Recipe, chat: ChatFormat, facts: ModelFacts, load: Load[LabelledAnswer] = load_labelled
) -> StageData[LabelledResponse]:
    """Unpaired labels of the reward stage and of KTO."""
    loaded = load(recipe.data)
    return _stage(recipe, loaded, chat, "labels", lambda rows: tokenise_labelled(rows, chat, recipe.data, facts))


def prompts(
    recipe: Recipe, chat: ChatFormat, facts: ModelFacts, load: Load[PromptRow] = load_prompts
) -> StageData[Prompt]:
    """Prompts of the PPO stage; the held-out ones are for evaluation.

    A prompt's ``id`` is its index in the training prompts followed by the held-out ones. Data rows are kept if a reward
    source needs them.
    """
    loaded = load(recipe.data)
    keeps_rows = any(source.function or source.endpoint for source in _reward_sources(recipe))
    if keeps_rows:
        loaded = replace(loaded, unused=())  # reward functions get the whole row
    longest = recipe.rollout.max_response_length
    data = _stage(
        recipe, loaded, chat, "prompts", lambda rows: tokenise_prompts(rows, chat, recipe.data, facts, longest)
    )
    prompts = [
        replace(prompt, id=i, row=prompt.row if keeps_rows else {})
        for i, prompt in enumerate((*data.train, *data.held_out))
    ]
    count = len(data.train)
    return replace(data, train=tuple(prompts[:count]), held_out=tuple(prompts[count:]))


def _reward_sources(recipe: Recipe) -> list[RewardSourceConfig]:
    return [*recipe.rewards.values(), *([recipe.early_stop.scorer] if recipe.early_stop else [])]


def _stage(
    recipe: Recipe,
    loaded: Loaded[R],
    chat: ChatFormat,
    name: str,
    tokenise: Callable[[Sequence[R]], Tokenised[T]],
    train_fraction: float = 1.0,
) -> StageData[T]:
    remarks = remarks_on_lost_text([_text_of_row(row) for row in some_of(loaded.rows)], chat.tokenizer)
    conversations = sum(not isinstance(row.prompt, str) for row in loaded.rows)
    if conversations and not chat.has_template and recipe.model.path is not None:  # a model made here has no other form
        remarks = (*remarks, WITHOUT_TEMPLATE.format(conversations))
    loaded = replace(loaded, remarks=(*loaded.remarks, *remarks))
    keys = [split_key(row) for row in loaded.rows]
    train, held_out = split_by_prompt(keys, recipe.data.held_out_fraction, recipe.seed, train_fraction)
    unused = len(keys) - len(train) - len(held_out)
    held_out = [i for i in held_out if not _is_tie(loaded.rows[i])]
    sides = [
        tokenise([loaded.rows[i] for i in side]) if side else Tokenised((), {}, 0, 0) for side in (train, held_out)
    ]
    part = f"  {unused:,} × outside the fraction of the training prompts that is used"
    lines = [
        describe(loaded, name),
        *([part] if unused else []),
        *(
            describe_tokenised(side, n)
            for side, n in zip(sides, (f"{name} to train on", f"{name} held out"), strict=True)
        ),
    ]
    return StageData(
        train=sides[0].items,
        held_out=sides[1].items,
        bad=loaded.bad,
        report="\n".join(lines),
        files=loaded.files,
        conversations=conversations,
    )


def _is_tie(row: Row) -> bool:
    return isinstance(row, Preference) and row.is_tie


def _text_of_row(row: Row) -> str:
    """The text of a row's prompt and of its answer, of two the better one."""
    answer = "" if isinstance(row, PromptRow) else row.chosen if isinstance(row, Preference) else row.completion
    return transcript(row.prompt) + text_of(answer)


def _with_demonstrations(config: DataConfig) -> DataConfig:
    if config.demonstrations is None and config.path is None:
        return replace(config, demonstrations=config.preferences)
    return config


def texts(recipe: Recipe, load: Load[Demonstration] = load_demonstrations) -> Iterator[str]:
    """Texts for training a new tokenizer: the demonstrations of the training prompts."""
    loaded = load(_with_demonstrations(recipe.data))
    train, _ = split_by_prompt([split_key(row) for row in loaded.rows], recipe.data.held_out_fraction, recipe.seed)
    for i in train:
        row = loaded.rows[i]
        yield transcript(row.prompt) + text_of(row.completion)


Judged = Pair | LabelledResponse
"""What people judged: two responses to a prompt, or one."""


def by_prompt(pairs: Sequence[Judged]) -> list[list[int]]:
    """Indices of the comparisons, or labels, of each prompt, which belong in one batch."""
    groups: dict[int, list[int]] = {}
    for i, pair in enumerate(pairs):
        groups.setdefault(pair.prompt_id, []).append(i)
    return list(groups.values())


def comparison_batches(pairs: Sequence[Judged], prompts: int, epochs: int, seed: int) -> list[list[int]]:
    """Comparisons of every update: those of ``prompts`` whole prompts, so that a prompt's are in one gradient."""
    groups = by_prompt(pairs)
    order = epoch_batches(len(groups), prompts, epochs, seed)
    return [[pair for group in batch for pair in groups[group]] for batch in order]
