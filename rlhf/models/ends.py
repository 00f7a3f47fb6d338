"""The tokens that end a response, according to the tokenizer and the model folder's settings."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

GENERATION = "generation_config.json"
Ends = dict[str, list[int]]
"""Source of end tokens → their ids, sorted; empty if the source names none."""


def end_tokens(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Ends:
    """End tokens of a tokenizer and of a model folder's settings."""
    return {"tokenizer": _ids("the tokenizer", tokenizer.eos_token_id), **settings_ends(folder)}


def settings_ends(folder: str | Path) -> Ends:
    """End tokens written in a model folder's settings; class defaults do not count.

    Raises:
        UserError: a settings file is damaged, or names something else than token ids.
    """
    from transformers import PreTrainedConfig

    generation = _generation_settings(folder)
    ends: Ends = {GENERATION: _ids(GENERATION, generation.eos_token_id) if generation else [], "config.json": []}
    with suppress(OSError, ValueError):  # refused elsewhere, by the reader of the model's configuration
        written, _ = PreTrainedConfig.get_config_dict(str(folder))
        nested = written.get("text_config") or {}
        ends["config.json"] = _ids("config.json", written.get("eos_token_id"), nested.get("eos_token_id"))
    return ends


def _generation_settings(folder: str | Path) -> GenerationConfig | None:
    """The folder's generation settings; None if it has none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(str(folder))
    except Exception as error:  # transformers documents no types
        path = Path(folder) / GENERATION
        if not path.is_file():
            return None
        raise UserError(
            f"{path} cannot be read",
            f"{first_line(error)}; it names the tokens that end a response",
            "correct the file, or delete it: generation then follows config.json and the tokenizer",
        ) from error


def differing_ends(ends: Mapping[str, list[int]]) -> str:
    """Warning text if the sources name different tokens; empty if they agree."""
    named = {name: ids for name, ids in ends.items() if ids}
    if len({tuple(ids) for ids in named.values()}) < 2:
        return ""
    each = "; ".join(f"{name} {', '.join(map(str, ids))}" for name, ids in named.items())
    return f"end tokens differ: {each}. A response ends at any of them"


def _ids(source: str, *named: Any) -> list[int]:
    """Sorted ids of values that are each an id, a list of ids, or None."""
    listed = [value if isinstance(value, list) else [value] for value in named]
    found = [token for tokens in listed for token in tokens if token is not None]
    wrong = [token for token in found if type(token) is not int or token < 0]
    if wrong:
        raise UserError(
            f"{source}: eos_token_id has {wrong[0]!r:.40}",
            "it is the id of the token that ends a response, or a list of ids, each 0 or more",
            "write the id of the model's end token (tokenizer.json lists the ids)",
        )
    return sorted(set(found))
