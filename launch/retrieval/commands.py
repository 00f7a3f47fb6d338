"""``rlhf retrieval``: builds training data and an index from passages, and answers questions with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import launch.retrieval.ask
from launch.options import Overrides, RecipePath

if TYPE_CHECKING:
    from rlhf.config.schema import RetrievalConfig
    from rlhf.retrieval.dataset import Built
    from rlhf.retrieval.passages import Passage

PURPOSE = "train on and answer from passages (RAFT)"
EXAMPLE = "rlhf retrieval build examples/travel/retrieval.yaml"


def build(recipe: RecipePath, overrides: Overrides) -> None:
    """Write the training and evaluation data of a recipe's questions.

    Raises:
        UserError: passages, questions, template or encoder cannot be used, or no question has a row.
    """
    from rlhf.config.load import load_recipe
    from rlhf.data.report import describe, describe_bad
    from rlhf.retrieval.dataset import build_rows, save_dataset
    from rlhf.retrieval.folder import check_replaceable
    from rlhf.retrieval.index import build_index
    from rlhf.retrieval.passages import load_questions
    from rlhf.retrieval.template import PromptTemplate

    loaded = load_recipe(recipe, overrides)
    config, folder = loaded.retrieval, Path(loaded.retrieval.dataset).expanduser()
    check_replaceable(folder, "dataset")
    template, passages = PromptTemplate.of(config), _passages(config)
    questions = load_questions(_required(config.questions, "questions", "rows with question, answer and oracle"))
    print(describe(questions, "questions"))
    index = build_index(passages, config)
    built = build_rows(index, questions.rows, config, loaded.seed)
    _require_rows(len(built.of_side("train")), describe_bad(built.rejected))
    save_dataset(built, index, template, loaded.seed, folder)
    if built.rejected:
        print(f"{len(built.rejected):,} questions rejected\n{describe_bad(built.rejected)}")
    rows, given = (_by_side(built, only_with_oracle=only) for only in (False, True))
    print(f"rows: {rows}; with the oracle in the prompt: {given} → {folder}")
    if config.evaluation_fraction > 0 and not built.of_side("evaluation"):
        print(
            f"warning: no question is for evaluation, though retrieval.evaluation_fraction = "
            f"{config.evaluation_fraction:g}; raise it, give more documents, or choose another seed"
        )


def _by_side(built: Built, *, only_with_oracle: bool) -> str:
    from rlhf.retrieval.split import SIDES

    counts = [sum(row.has_oracle or not only_with_oracle for row in built.of_side(side)) for side in SIDES]
    return ", ".join(f"{count:,} {side}" for count, side in zip(counts, SIDES))


def index(recipe: RecipePath, overrides: Overrides) -> None:
    """Write the index of a recipe's passages.

    Raises:
        UserError: passages, template or encoder cannot be used.
    """
    from rlhf.config.load import load_recipe
    from rlhf.retrieval.folder import check_replaceable
    from rlhf.retrieval.index import build_index, save_index
    from rlhf.retrieval.template import PromptTemplate

    config = load_recipe(recipe, overrides).retrieval
    folder = Path(config.index).expanduser()
    check_replaceable(folder, "index")
    template, passages = PromptTemplate.of(config), _passages(config)
    save_index(build_index(passages, config), config, template, folder)
    print(f"{len(passages):,} passages by {config.method} → {folder}")


def _passages(config: RetrievalConfig) -> tuple[Passage, ...]:
    from rlhf.data.report import describe
    from rlhf.retrieval.passages import load_passages

    loaded = load_passages(_required(config.passages, "passages", "rows with text"))
    print(describe(loaded, "passages"))
    return loaded.rows


def _required(path: str | None, name: str, rows: str) -> str:
    from rlhf.config.named_files import check_path
    from rlhf.errors import UserError, raise_all

    key = f"retrieval.{name}"
    if path is None:
        raise UserError(f"{key} is not set", fix=f"{key}=<file>, {rows}")
    raise_all(list(check_path(key, path)), key)
    return path


def _require_rows(count: int, rejected: str) -> None:
    from rlhf.errors import UserError

    if count == 0:
        fix = "give more passages, or lower retrieval.distractors or retrieval.evaluation_fraction"
        raise UserError("no question has a training row", rejected.strip(), fix)


COMMANDS: Mapping[str, tuple[Callable[..., int | None], str, str]] = {
    "build": (
        build,
        "write training and evaluation data: questions with passages, and answers that quote them",
        "rlhf retrieval build examples/travel/retrieval.yaml retrieval.distractors=4",
    ),
    "index": (index, "write the index of passages", "rlhf retrieval index examples/travel/retrieval.yaml"),
    "ask": (launch.retrieval.ask.run, launch.retrieval.ask.PURPOSE, launch.retrieval.ask.EXAMPLE),
}
"""Function, purpose and example of each command."""
