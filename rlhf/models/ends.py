"""The tokens that end a response, by who names them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ends = dict[str, list[int]]
"""Who names end tokens → their ids, in order; none where it names none."""


def end_tokens(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Ends:
    """The end tokens of a tokenizer and of a model folder's settings."""
    from transformers import GenerationConfig, PreTrainedConfig

    ends: Ends = {"tokenizer": _ids(tokenizer.eos_token_id), "generation_config.json": [], "config.json": []}
    with suppress(OSError, ValueError):  # not every model has generation settings
        ends["generation_config.json"] = _ids(GenerationConfig.from_pretrained(str(folder)).eos_token_id)
    with suppress(OSError, ValueError):  # what is written there: a class's default that is not is none
        written, _ = PreTrainedConfig.get_config_dict(str(folder))
        nested = (written.get("text_config") or {}).get("eos_token_id")
        ends["config.json"] = _ids(written.get("eos_token_id", nested))
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
