"""Items of an evaluation and every arm's answers to them: the same items for all, checked before anything is scored.

Shapes: I items, A arms, n answers per item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rlhf.arms.inspect_log import LARGEST, is_inspect_log, read_inspect_log
from rlhf.config.schema import DataConfig
from rlhf.data.formats import load_prompts
from rlhf.data.shapes import are_turns, turns_in
from rlhf.data.split import canonical_prompt
from rlhf.data.turns import RowError, read_messages
from rlhf.errors import UserError
from rlhf.evaluation.lint import EvaluationRow
from rlhf.records import PromptRow, RowLocation
from rlhf.types import Int64

REFERENCES = ("references", "reference", "answer")
"""Columns of the right answer: the first one that an item has. ``answer`` is that of ``rlhf retrieval build``."""
SHOWN = 3
"""Prompts that a message quotes."""


@dataclass(frozen=True, kw_only=True)
class EvaluationItem:
    """A prompt to which all arms answered, and what is known of its right answer."""

    prompt: str
    """Canonical text of the prompt."""
    location: RowLocation
    references: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    """Passages that belong to the question, if an arm's rows name none of their own."""
    group: str = ""
    """Items of one group are resampled together; empty: each item is its own group."""


@dataclass(frozen=True, kw_only=True)
class ArmAnswers:
    """One arm's answers, in the order of the items."""

    name: str
    answers: tuple[tuple[str, ...], ...]
    """The n ≥ 1 answers to each item; metrics read the first one, ``consistency`` all."""
    contexts: tuple[tuple[str, ...], ...]
    """The passages that the arm retrieved for each item."""
    scores: tuple[Mapping[str, float], ...] = ()
    """By item, the numbers that the arm's rows hold, averaged over the item's answers."""

    @property
    def first(self) -> tuple[str, ...]:
        """The first answer to each item."""
        return tuple(given[0] for given in self.answers)


@dataclass(frozen=True, kw_only=True)
class Arms:
    """Items, and the answers of all arms to them."""

    items: tuple[EvaluationItem, ...]
    arms: tuple[ArmAnswers, ...]
    base: int
    """Index of the base among the arms."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arms in their order."""
        return tuple(arm.name for arm in self.arms)

    @cached_property
    def clusters(self) -> Int64:
        """(I,) cluster of each item."""
        keys = [item.group or f"\0{number}" for number, item in enumerate(self.items)]
        return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def read_arms(items: str, arms: Mapping[str, str], base: str) -> Arms:
    """Read items and answers.

    Args:
        items: file with the items: rows, or a log of Inspect.
        arms: file of answers by arm: rows, or a log of Inspect.
        base: name of the arm that others are compared with.

    Raises:
        UserError: a file cannot be read, items repeat a prompt, an arm answered other prompts, or arms have different
            numbers of answers or used different settings of sampling.
    """
    read = _read_items(items)
    index = {item.prompt: number for number, item in enumerate(read)}
    found = [_read_arm(name, file, read, index) for name, file in arms.items()]
    _require_same_sampling({name: sampling for (_, sampling), name in zip(found, arms)})
    answers = tuple(arm for arm, _ in found)
    _require_same_number(answers)
    return Arms(items=read, arms=answers, base=list(arms).index(base))


def evaluation_rows(file: str, answer_columns: Sequence[str]) -> list[EvaluationRow]:
    """Rows of a file for the lint; the answers are those of the first of ``answer_columns`` that has one.

    Raises:
        UserError: the file cannot be read.
    """
    return [_evaluation_row(row, answer_columns) for row in _rows(file)]


def _evaluation_row(row: PromptRow, answer_columns: Sequence[str]) -> EvaluationRow:
    prompt = canonical_prompt(row.prompt)
    given = (_answers_in(row.columns.get(name)) for name in answer_columns)
    return EvaluationRow(
        location=row.source,
        prompt=prompt,
        answers=next(filter(None, given), ()),
        label=_name(row.columns.get("label")),
        columns={"prompt": prompt, row.prompt_column: prompt, **row.columns},
    )


def _answers_in(value: object) -> tuple[str, ...]:
    """The answers in a column: a text, each of several, or the last turn of the assistant in a conversation."""
    turns = turns_in(value) if isinstance(value, str) else value
    if are_turns(turns):
        return _last_reply(turns)
    given = value if isinstance(value, list) else [value]
    return tuple(text for each in given if each is not None and (text := str(each)).strip())


def _last_reply(turns: object) -> tuple[str, ...]:
    try:
        said = [turn.content for turn in read_messages(turns, "messages") if turn.role == "assistant"]
    except RowError:  # a turn that no model is trained on, such as an image
        return ()
    return tuple(said[-1:])


def _name(value: object) -> str:
    """A label or a group as text; empty for none. 0 and false are names too."""
    return "" if value is None else str(value)


def _rows(file: str) -> tuple[PromptRow, ...]:
    if is_inspect_log(file):
        return read_inspect_log(file)
    try:
        return load_prompts(DataConfig(prompts=file, bad_rows="error")).rows
    except UserError as error:  # its remedy is a key of a recipe
        raise UserError(error.what, error.why, f"correct '{file}', or name another file in the comparison") from error


def _read_items(file: str) -> tuple[EvaluationItem, ...]:
    first: dict[str, EvaluationItem] = {}
    repeats = is_inspect_log(file)  # a log has its samples once in each epoch
    for item in map(_item, _rows(file)):
        if item.prompt in first and not repeats:
            where = f"{first[item.prompt].location} and {item.location}"
            fix = "keep one of them; `rlhf evaluate --comparison FILE --lint` lists all repeated questions"
            raise UserError(f"{where} have the same prompt", "answers are matched to items by their prompt", fix)
        first.setdefault(item.prompt, item)
    return tuple(first.values())


def _item(row: PromptRow) -> EvaluationItem:
    columns = row.columns
    given = next((columns[name] for name in REFERENCES if columns.get(name) is not None), None)
    return EvaluationItem(
        prompt=canonical_prompt(row.prompt),
        location=row.source,
        references=_texts(given, row, "references"),
        contexts=_texts(columns.get("contexts"), row, "contexts"),
        group=_name(columns.get("group")),
    )


def _texts(value: object, row: PromptRow, column: str) -> tuple[str, ...]:
    given = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise UserError(f"{row.source}: {column} is no text and no list of texts", fix="correct the row")
    return tuple(given)


def _read_arm(
    name: str, file: str, items: Sequence[EvaluationItem], index: Mapping[str, int]
) -> tuple[ArmAnswers, str]:
    """An arm's answers, and its settings of sampling as text."""
    answers: list[list[str]] = [[] for _ in items]
    contexts = [item.contexts for item in items]
    scores: list[list[Mapping[str, float]]] = [[] for _ in items]
    sampling: set[str] = set()
    for row in _rows(file):
        number = index.get(canonical_prompt(row.prompt))
        response = row.columns.get("response")
        if number is None:
            raise _unequal(name, f"answers a prompt that is no item: {row.source}")
        if not isinstance(response, str):
            raise UserError(f"{row.source} has no response", "an arm's rows hold prompt and response")
        answers[number].append(response.strip())
        scores[number].append(_scores(row))
        contexts[number] = _texts(row.columns.get("contexts"), row, "contexts") or contexts[number]
        sampling.add(repr(row.columns.get("sampling")))
    missing = [item for item, given in zip(items, answers) if not given]
    if missing:
        where = ", ".join(str(item.location) for item in missing[:SHOWN])
        raise _unequal(name, f"has no answer to {len(missing):,} of {len(items):,} items: {where}")
    arm = ArmAnswers(
        name=name,
        answers=tuple(map(tuple, answers)),
        contexts=tuple(contexts),
        scores=tuple(map(_mean_scores, scores)),
    )
    return arm, ", ".join(sorted(sampling))


def _scores(row: PromptRow) -> Mapping[str, float]:
    given = row.columns.get("scores") or {}
    if not isinstance(given, Mapping) or not all(_is_number(each) for each in given.values() if each is not None):
        raise UserError(f"{row.source}: scores is no object of numbers", fix='write {"scores": {"name": 1.0}}')
    return {str(name): float(each) for name, each in given.items() if each is not None}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= LARGEST


def _mean_scores(scores: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """The mean of each score over an item's answers that have it."""
    names = {name for each in scores for name in each}
    return {name: float(np.mean([each[name] for each in scores if name in each])) for name in names}


def _unequal(name: str, what: str) -> UserError:
    why = "arms are compared on the same items only"
    return UserError(f"arm {name} {what}", why, "answer exactly the items by `rlhf generate --prompts`")


def _require_same_number(arms: Sequence[ArmAnswers]) -> None:
    numbers = {arm.name: {len(given) for given in arm.answers} for arm in arms}
    if len(set().union(*numbers.values())) > 1:
        shown = "; ".join(f"{name}: {', '.join(map(str, sorted(found)))}" for name, found in numbers.items())
        why = "an arm with more tries at an item has another chance than the others"
        raise UserError(f"the number of answers per item differs: {shown}", why, "sample the same number for all")


def _require_same_sampling(sampling: Mapping[str, str]) -> None:
    if len({*sampling.values()}) > 1:
        shown = "; ".join(f"{name}: {found}" for name, found in sampling.items())
        why = "a difference between arms could be one of temperature or length"
        raise UserError(f"the column sampling differs between arms: {shown}", why, "sample all arms alike")
