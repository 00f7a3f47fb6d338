"""Reads a model folder without its weights: tokenizer, context length, end tokens.

transformers' classes are imported inside functions: the import takes seconds, and processes that only pass data along
do not need them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from rlhf.config.named_files import HUB_NAME, from_here
from rlhf.config.schema import ModelConfig
from rlhf.data.chat import ChatFormat
from rlhf.data.template import DATE, template_date
from rlhf.errors import UserError, first_line
from rlhf.models.tokenizer_dropout import switch_dropout_off
from rlhf.models.unloadable import advise
from rlhf.types import ModelFacts as ModelFacts

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""Configuration keys, over architectures, for the longest sequence."""
GENERATION = "generation_config.json"
KNOWN_PADS = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<|fim_pad|>")
"""Padding tokens that some tokenizers contain without declaring them."""
Ends = dict[str, list[int]]
"""Source of end tokens → their ids, sorted; empty if the source names none."""


def load_tokenizer(folder: str | Path, config: ModelConfig, day: date | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder or hub name, with the recipe's chat template if it gives one.

    Args:
        day: date for chat templates that ask for it, if the folder stores none; today by default. The tokenizer stores
            it, so that a saved model is always prompted as it was trained.
    """
    from transformers import AutoTokenizer

    tokenizer = from_folder(AutoTokenizer, folder, config)
    if remark := switch_dropout_off(tokenizer, folder):
        print(f"tokenizer {folder}: {remark}", flush=True)
    if config.chat_template:
        template = Path(config.chat_template)
        if not template.is_file():
            raise UserError(f"model.chat_template: no file {template}", fix="give the path of a Jinja template")
        tokenizer.chat_template = _read_template(template)
    elif isinstance(tokenizer.chat_template, str):  # an edited template file may begin with a byte order mark
        own = tokenizer.chat_template.removeprefix("\ufeff")
        tokenizer.chat_template = own if own.strip() else None
    rows = None
    with suppress(UserError):  # the folder may hold only a tokenizer
        rows = _embedding_rows(read_settings(folder, config))
    prepare_tokenizer(tokenizer, rows)
    if "strftime_now" in str(tokenizer.chat_template) and template_date(tokenizer) is None:
        tokenizer.init_kwargs[DATE] = (day or date.today()).isoformat()
    return tokenizer


def load_chat(folder: str | Path, config: ModelConfig, day: date | None = None) -> ChatFormat:
    """Load the chat format of a model folder, with the end tokens of its settings."""
    tokenizer = load_tokenizer(folder, config, day)
    return ChatFormat(tokenizer, read_facts(folder, config, tokenizer).end_tokens)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, embedding_rows: int | None = None) -> None:
    """Ensure, in place, that the tokenizer has an end token and a padding token that differs from it.

    Training packs and never pads, but others may pad a saved model. If the padding token is the end token, they mask
    the end out of the loss, and the model never learns to stop. So another token of the vocabulary is chosen: a known
    padding token or the unknown token. If there is none, padding stays unchanged: a new token would have no row in the
    embedding.

    Args:
        embedding_rows: number of rows in the model's embedding; a padding token with a larger id is dropped.

    Raises:
        UserError: the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end token",
            "a response ends where the model emits it; without one every response runs to the length limit",
            "set eos_token in the model folder's tokenizer_config.json",
        )
    vocabulary = tokenizer.get_vocab()

    def is_known(token: str | None) -> bool:
        token_id = vocabulary.get(token or "")
        return token_id is not None and (embedding_rows is None or token_id < embedding_rows)

    declared = tokenizer.pad_token
    if is_known(declared) and declared != tokenizer.eos_token:
        return
    candidates = [*KNOWN_PADS, tokenizer.unk_token]
    spare = next((token for token in candidates if is_known(token) and token != tokenizer.eos_token), None)
    tokenizer.pad_token = spare or (declared if is_known(declared) else None)


def read_facts(folder: str | Path, config: ModelConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> ModelFacts:
    """Read the facts of a model folder; ``tokenizer`` is the folder's, if it is loaded already.

    Raises:
        UserError: the folder has no settings, or invalid ones.
    """
    settings = read_settings(folder, config)
    rows = _embedding_rows(settings)
    end = (tokenizer or load_tokenizer(folder, config)).eos_token_id
    ends = {end, *chain.from_iterable(settings_ends(folder).values())}
    return ModelFacts(
        context=_read_context(folder, settings),
        embedding_rows=rows,
        end_tokens=tuple(sorted(int(token) for token in ends if 0 <= token < rows)),
    )


def end_tokens(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Ends:
    """End tokens of a tokenizer and of a model folder's settings."""
    return {"tokenizer": _end_ids("the tokenizer", tokenizer.eos_token_id), **settings_ends(folder)}


def settings_ends(folder: str | Path) -> Ends:
    """End tokens written in a model folder's settings; class defaults do not count.

    Raises:
        UserError: a settings file is damaged, or names something else than token ids.
    """
    from transformers import PreTrainedConfig

    generation = _generation_settings(folder)
    ends: Ends = {GENERATION: _end_ids(GENERATION, generation.eos_token_id) if generation else [], "config.json": []}
    with suppress(OSError, ValueError):  # refused elsewhere, by the reader of the model's configuration
        written, _ = PreTrainedConfig.get_config_dict(str(folder))
        nested = written.get("text_config") or {}
        ends["config.json"] = _end_ids("config.json", written.get("eos_token_id"), nested.get("eos_token_id"))
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


def _end_ids(source: str, *named: Any) -> list[int]:
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


def context_length(folder: str | Path, config: ModelConfig) -> int:
    """Longest sequence that the model supports, in tokens."""
    return _read_context(folder, read_settings(folder, config))


def read_settings(folder: str | Path, config: ModelConfig, **extra: Any) -> Any:
    """Read the folder's ``config.json`` with transformers; ``extra`` replaces values of it.

    Raises:
        UserError: it cannot be read, or the weights are quantised.
    """
    from transformers import AutoConfig

    settings = from_folder(AutoConfig, folder, config, **extra)
    if quantised := getattr(settings, "quantization_config", None):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise UserError(
            f"the model in {str(folder)!r} is quantised{f' ({method})' if method else ''}",
            "quantised weights can be neither trained nor published to an engine",
            "give the model as it was before it was quantised",
        )
    return settings


def _read_context(folder: str | Path, settings: Any) -> int:
    for name in CONTEXTS:
        length = getattr(settings.get_text_config(), name, None)
        if not isinstance(length, int | None) or (length or 1) < 0:
            what = f"the model in {str(folder)!r} has a context of {length!r:.40}"
            raise UserError(what, "it is a number of tokens", f"correct {name} in its config.json")
        if length:
            return length
    return 2**31


def _embedding_rows(settings: Any) -> int:
    return int(getattr(settings.get_text_config(), "vocab_size", None) or 2**31)


def _read_template(template: Path) -> str:
    try:
        text = template.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"model.chat_template: {template} cannot be read", str(error), "save it as UTF-8") from error
    if not text.strip():
        raise UserError(
            f"model.chat_template: {template} is empty",
            "it would write nothing of a conversation",
            "give a Jinja template, or model.chat_template=null for the one in the model's folder",
        )
    return text


# Any error while loading these text files is the folder's fault. Loading a network may also run out of memory.
TEXTS = ("AutoConfig", "AutoTokenizer")
PARTS = {"AutoConfig": "the settings", "AutoTokenizer": "the tokenizer"}
"""What is loaded, for messages, by one of transformers' ``Auto`` classes; the others load a model."""


def absent_fix(is_name: bool) -> str:
    """Fix for a model's path at which there is nothing."""
    return from_here() + ("; a hub name needs a connection to the hub, or the model in its cache" if is_name else "")


def from_folder(auto: Any, folder: str | Path, model: ModelConfig, **options: Any) -> Any:
    """Load a folder or hub name with one of transformers' ``Auto`` classes.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        return auto.from_pretrained(str(folder), trust_remote_code=model.trust_remote_code, **options)
    except Exception as error:
        if auto.__name__ not in TEXTS and not isinstance(
            error, (OSError, ValueError, KeyError, ImportError, SafetensorError)
        ):
            raise
        is_there, is_name = os.path.exists(folder), bool(HUB_NAME.fullmatch(str(folder)))
        absent = "there is no such file or folder" + (", and as a name on the hub: " if is_name else "")
        raise UserError(
            f"cannot load {PARTS.get(auto.__name__, 'the model')} from {str(folder)!r}",
            why=first_line(error) if is_there else absent + first_line(error) * is_name,
            fix=advise(folder, auto.__name__, error, model.trust_remote_code) if is_there else absent_fix(is_name),
        ) from error
