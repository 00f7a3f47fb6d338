"""``rlhf generate``: generates a model's answers to a file of prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.answering import answer
from actors.session import Session
from launch.options import writable
from rlhf.config.schema import RolloutConfig
from rlhf.data.formats import load_prompts
from rlhf.data.report import describe
from rlhf.data.tokenise import describe_tokenised, tokenise_prompts
from rlhf.errors import UserError
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
    each: int = 1
    """Answers sampled to every prompt."""


def read_questions(session: Session, model: str, prompts: str, out: str | None, each: int = 1) -> Questions:
    """Read and check everything before an engine is started.

    Raises:
        UserError: the model or the prompts cannot be used, the output file cannot be written, or ``each`` is below 1.
    """
    if each < 1:
        raise UserError(f"--n {each} asks for no answer", "every prompt gets n answers", "--n 1 or more")
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
    return Questions(
        session=session, model=Path(model), rows=loaded.rows, prompts=tokenised.items, out=place, each=each
    )


def generate(questions: Questions) -> None:
    """Write one line per answer: the given prompt, the sampled response, and the settings of sampling."""
    session, out, each = questions.session, questions.out, questions.each
    answers = answer(session, questions.model, questions.prompts, session.root / "logs", out is not None, each)
    prompts = [_plain(questions.rows[prompt.id].prompt) for prompt in questions.prompts for _ in range(each)]
    sampling = sampling_of(session.recipe.rollout)
    rows = [
        {"prompt": prompt, "response": text, "sampling": sampling}
        for prompt, text in zip(prompts, answers, strict=True)
    ]
    write_rows(rows, out, session)


def sampling_of(rollout: RolloutConfig) -> Mapping[str, object]:
    """The settings that answers of compared models must share; ``rlhf evaluate`` refuses a comparison of others."""
    return {"temperature": rollout.temperature, "max_response_length": rollout.max_response_length}


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
