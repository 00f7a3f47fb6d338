"""``rlhf generate``: a model's answers to a file of prompts."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from actors.answering import answer
from actors.session import Session
from rlhf.data.formats import load_prompts
from rlhf.data.report import describe
from rlhf.data.tokenise import describe_tokenised, tokenise_prompts
from rlhf.models.load import context_length, load_tokenizer


def generate(session: Session, model: str, prompts: str, out: str | None) -> None:
    """Write one line a prompt: the prompt as it was given, and the sampled response."""
    recipe = replace(session.recipe, data=replace(session.recipe.data, prompts=prompts))
    recipe = replace(recipe, model=replace(recipe.model, path=model, scratch=None))
    session = replace(session, recipe=recipe)
    tokenizer = load_tokenizer(model, recipe.model)
    loaded = load_prompts(recipe.data)
    longest = recipe.rollout.max_response_length
    tokenised = tokenise_prompts(loaded.rows, tokenizer, recipe.data, context_length(model, recipe.model), longest)
    if out is not None:  # otherwise standard output is for the answers alone
        session.console.print(describe(loaded, "prompts"))
        session.console.print(describe_tokenised(tokenised, "prompts"))
    tokens = tokenised.items
    answers = answer(session, Path(model), tokens, session.root / "logs", shown=out is not None)
    rows = [
        json.dumps({"prompt": _plain(loaded.rows[prompt.id].prompt), "response": text}, ensure_ascii=False)
        for prompt, text in zip(tokens, answers, strict=True)
    ]
    if out is None:
        for row in rows:
            session.console.line(row)
    else:
        Path(out).write_text("\n".join(rows) + "\n", encoding="utf-8")
        session.console.print(f"{len(rows)} answers → {out}")


def _plain(prompt: object) -> object:
    return prompt if isinstance(prompt, str) else [asdict(turn) for turn in prompt]  # type: ignore[attr-defined]
