"""``rlhf generate``: generates a model's answers to a file of prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.answering import answer
from actors.session import Session
from launch.options import writable
from rlhf.data.formats import load_prompts
from rlhf.data.report import describe
from rlhf.data.tokenise import describe_tokenised, tokenise_prompts
from rlhf.records import Messages, PromptRow
from rlhf.retrieval.dataset import check_dataset_template
from rlhf.storage.durable import write_atomically
from rlhf.types import Prompt


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The prompts to answer, the model, and the output file."""

    session: Session
    model: Path
    rows: tuple[PromptRow, ...]
    prompts: tuple[Prompt, ...]
    """Usable prompts; a prompt's ``id`` is the index of its row."""
    out: Path | None
    """Output file; without it, answers go to standard output."""


def read_questions(session: Session, model: str, prompts: str, out: str | None) -> Questions:
    """Read and check everything before an engine is started.

    Raises:
        UserError: the model or the prompts cannot be used, or the output file cannot be written.
    """
    place = None if out is None else writable(out)
    check_dataset_template(prompts, session.recipe.retrieval)
    data = replace(session.recipe.data, prompts=prompts)
    named = replace(session.recipe.model, path=model, scratch=None)
    recipe = replace(session.recipe, data=data, model=named, ppo=replace(session.recipe.ppo, policy_init=None))
    session = replace(session, recipe=recipe)
    chat, facts = session.chat, session.facts
    loaded = load_prompts(recipe.data)
    longest = recipe.rollout.max_response_length
    tokenised = tokenise_prompts(loaded.rows, chat, recipe.data, facts, longest)
    if place is not None:  # otherwise standard output is only for answers
        session.console.print(describe(loaded, "prompts"))
        session.console.print(describe_tokenised(tokenised, "prompts"))
    return Questions(session=session, model=Path(model), rows=loaded.rows, prompts=tokenised.items, out=place)


def generate(questions: Questions) -> None:
    """Write one line per prompt: the given prompt, and the sampled response."""
    session, out = questions.session, questions.out
    answers = answer(session, questions.model, questions.prompts, session.root / "logs", shown=out is not None)
    rows = [
        {"prompt": _plain(questions.rows[prompt.id].prompt), "response": text}
        for prompt, text in zip(questions.prompts, answers, strict=True)
    ]
    write_rows(rows, out, session)


def write_rows(rows: Sequence[Mapping[str, object]], out: Path | None, session: Session) -> None:
    """Write rows as JSON lines to a file, or to standard output."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if out is None:
        for line in lines:
            session.console.line(line)
    else:
        write_atomically(out, "\n".join(lines) + "\n")
        session.console.print(f"{len(lines)} answers → {out}")


def _plain(prompt: Messages | str) -> object:
    return prompt if isinstance(prompt, str) else [turn.as_dict() for turn in prompt]
