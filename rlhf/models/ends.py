"""The tokens that end a response, by who names them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ends = dict[str, list[int]]
"""Who names end tokens → their ids, in order; none where it names none."""


def end_tokens(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Ends:
    """The end tokens of a tokenizer and of a model folder's settings."""
    from transformers import AutoConfig, GenerationConfig

    ends = {"tokenizer": _ids(tokenizer.eos_token_id)}
    for name, settings in (("generation_config.json", GenerationConfig), ("config.json", AutoConfig)):
        try:
            ends[name] = _ids(settings.from_pretrained(str(folder)).eos_token_id)
        except (OSError, ValueError):  # not every model has generation settings
            ends[name] = []
    return ends


def differing_ends(ends: Mapping[str, list[int]]) -> str:
    """What to say where they do not name the same tokens; empty where they do."""
    named = {name: ids for name, ids in ends.items() if ids}
    if len({tuple(ids) for ids in named.values()}) < 2:
        return ""
    each = "; ".join(f"{name} {', '.join(map(str, ids))}" for name, ids in named.items())
    return f"end tokens differ: {each}. A response ends at any of them"


def _ids(value: Any) -> list[int]:
    return sorted(set(value)) if isinstance(value, list) else [] if value is None else [int(value)]
