"""The tokens that end a response, according to the tokenizer and the model folder's settings."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ends = dict[str, list[int]]
"""Source of end tokens → their ids, sorted; empty if the source names none."""


def end_tokens(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Ends:
    """End tokens of a tokenizer and of a model folder's settings."""
    return {"tokenizer": _ids(tokenizer.eos_token_id), **settings_ends(folder)}


def settings_ends(folder: str | Path) -> Ends:
    """End tokens written in a model folder's settings; class defaults do not count."""
    from transformers import GenerationConfig, PreTrainedConfig

    ends: Ends = {"generation_config.json": [], "config.json": []}
    with suppress(OSError, ValueError):  # not every model has a generation config
        ends["generation_config.json"] = _ids(GenerationConfig.from_pretrained(str(folder)).eos_token_id)
    with suppress(OSError, ValueError):
        written, _ = PreTrainedConfig.get_config_dict(str(folder))
        nested = written.get("text_config") or {}
        ends["config.json"] = _ids(written.get("eos_token_id"), nested.get("eos_token_id"))
    return ends


def differing_ends(ends: Mapping[str, list[int]]) -> str:
    """Warning text if the sources name different tokens; empty if they agree."""
    named = {name: ids for name, ids in ends.items() if ids}
    if len({tuple(ids) for ids in named.values()}) < 2:
        return ""
    each = "; ".join(f"{name} {', '.join(map(str, ids))}" for name, ids in named.items())
    return f"end tokens differ: {each}. A response ends at any of them"


def _ids(*named: Any) -> list[int]:
    """Sorted ids among values that are each an id, a list of ids, or None."""
    listed = [value if isinstance(value, list) else [value] for value in named]
    return sorted({token for tokens in listed for token in tokens if isinstance(token, int)})
