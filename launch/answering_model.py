"""Chooses the model that answers for ``rlhf feedback`` and ``rlhf retrieval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.errors import UserError

if TYPE_CHECKING:
    from actors.session import Session


def answering_model(session: Session, key: str, given: str | None, why: str) -> Path:
    """Folder of the model that answers: the given one, that of the last finished stage, or the base model.

    A stage may have been finished with other settings of training, but not with another vocabulary.

    Args:
        key: the recipe's key of the model.
        given: its value.
        why: consequence of answers by a randomly initialised model, for the message.

    Raises:
        UserError: the model has another vocabulary, or there is only a randomly initialised one.
    """
    from rlhf.tracking.run_folder import RunFolder

    runs = [RunFolder(session.root, stage) for stage in ("ppo", "dpo", "sft")]
    finished = [run.model for run in runs if run.finished_digest() is not None]
    if given is not None or finished:
        folder = session.verified(finished[0] if given is None else Path(given).expanduser())
        session.require_vocabulary(key, folder)
        return folder
    if session.recipe.model.path is None:
        raise UserError(
            f"{session.root} has no finished model, and the base model is randomly initialised",
            why,
            f"run `rlhf sft` with the same recipe first, or set {key} to a model folder",
        )
    return session.base
