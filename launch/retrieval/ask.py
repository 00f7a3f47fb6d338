"""``rlhf retrieval ask``: retrieves passages for questions, and answers from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.answering_model import answering_model
from launch.options import Overrides, RecipePath, writable
from launch.run import Work, run_work
from rlhf.errors import UserError

if TYPE_CHECKING:
    from actors.session import Session
    from rlhf.config.schema import RetrievalConfig
    from rlhf.records import Messages
    from rlhf.retrieval.passages import Passage
    from rlhf.retrieval.template import PromptTemplate
    from rlhf.types import Prompt

PURPOSE = "answer questions from retrieved passages"
EXAMPLE = 'rlhf retrieval ask examples/travel/retrieval.yaml --question "What does a night at the Amber Inn cost?"'


def run(
    recipe: RecipePath,
    overrides: Overrides,
    question: Annotated[
        list[str], typer.Option(default_factory=list, show_default=False, metavar="TEXT", help="a question; repeatable")
    ],
    questions: Annotated[str | None, typer.Option(metavar="FILE", help="rows with a column question")] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="file to write; without it answers go to standard output")
    ] = None,
) -> None:
    """Answer questions; one JSON line for each."""
    run_work("generate", recipe, overrides, partial(_load, question, questions, out), log="retrieval-ask")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Questions with their passages, and the model that answers. All tuples are parallel."""

    session: Session
    model: Path
    questions: tuple[str, ...]
    passages: tuple[tuple[Passage, ...], ...]
    prompts: tuple[Prompt, ...]
    out: Path | None


def _load(given: list[str], file: str | None, out: str | None, session: Session) -> Work:
    place = None if out is None else writable(out)
    return partial(answer_questions, retrieve_passages(session, [*given, *read_questions(file)], place))


def read_questions(file: str | None) -> list[str]:
    """The column ``question`` of a file's rows, or nothing without a file.

    Raises:
        UserError: the file cannot be read, or a row has no question.
    """
    from rlhf.data.read import read_rows
    from rlhf.records import BadRow

    found = []
    for raw in read_rows(file) if file else ():
        value = None if isinstance(raw, BadRow) else raw.columns.get("question")
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{raw.source} has no question", fix="write a text in the column question of every row")
        found.append(value.strip())
    return found


def retrieve_passages(session: Session, questions: list[str], out: Path | None) -> Asked:
    """Retrieve the passages of every question and tokenise the prompts, before an engine is started.

    Raises:
        UserError: there is no question, the index or the model cannot be used, or a prompt does not fit.
    """
    from rlhf.retrieval.dataset import check_dataset_template
    from rlhf.retrieval.index import load_index, retrieve
    from rlhf.retrieval.template import PromptTemplate

    if not questions:
        raise UserError("there is no question", fix="--question TEXT, or --questions FILE")
    config = session.recipe.retrieval
    template = PromptTemplate.of(config)
    check_dataset_template(config.dataset, config)
    index = load_index(config, template)
    model = answering_model(session, "retrieval.model", config.model, "its answers would be noise")
    passages = tuple(retrieve(index, config, question) for question in questions)
    session = _with_model(session, model)
    prompts = _tokenise(session, config, template, questions, passages)
    return Asked(session=session, model=model, questions=tuple(questions), passages=passages, prompts=prompts, out=out)


def _with_model(session: Session, model: Path) -> Session:
    """A session whose tokenizer and limits are the model's."""
    recipe = session.recipe
    ppo, named = replace(recipe.ppo, policy_init=None), replace(recipe.model, path=str(model), scratch=None)
    return replace(session, recipe=replace(recipe, model=named, ppo=ppo))


def _tokenise(
    session: Session,
    config: RetrievalConfig,
    template: PromptTemplate,
    questions: list[str],
    passages: tuple[tuple[Passage, ...], ...],
) -> tuple[Prompt, ...]:
    """Prompts of all questions; one that is too long is an error, so that no answer misses a passage."""
    from rlhf.data.tokenise import tokenise_prompts
    from rlhf.records import PromptRow, RowLocation

    rows = [
        PromptRow(_form(template.prompt(question, found)), RowLocation("question", i + 1))
        for i, (question, found) in enumerate(zip(questions, passages, strict=True))
    ]
    longest = session.recipe.rollout.max_response_length
    data = replace(session.recipe.data, long_prompts="error")
    return tokenise_prompts(rows, session.chat, data, session.facts, longest).items


def _form(prompt: str | list[dict[str, str]]) -> Messages | str:
    from rlhf.records import Message

    if isinstance(prompt, str):
        return prompt
    return tuple(Message(turn["role"], turn["content"]) for turn in prompt)


def answer_questions(asked: Asked) -> None:
    """Write one line per question: question, answer, quotes, the whole response, the passages' ids and texts, and the
    settings of sampling."""
    from actors.answering import answer
    from launch.generate import sampling_of, write_rows

    session, logs = asked.session, asked.session.root / "logs"
    responses = answer(session, asked.model, asked.prompts, logs, shown=asked.out is not None)
    sampling = sampling_of(session.recipe.rollout)
    rows = [
        {**_row(question, response, passages), "sampling": sampling}
        for question, response, passages in zip(asked.questions, responses, asked.passages, strict=True)
    ]
    write_rows(rows, asked.out, session)


def _row(question: str, response: str, passages: tuple[Passage, ...]) -> dict[str, object]:
    from rlhf.retrieval.answers import extract_answer, extract_quotes

    return {
        "question": question,
        "answer": extract_answer(response),
        "quotes": extract_quotes(response),
        "response": response,
        "context_ids": [passage.id for passage in passages],
        "contexts": [passage.text for passage in passages],
    }
