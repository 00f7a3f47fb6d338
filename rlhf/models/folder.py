"""What a model's folder says before any weight is read: its tokenizer, its context, its end tokens.

transformers' classes are imported where they are used: that takes seconds, and a process that only passes data on
needs none of them.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import date
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from rlhf.config.schema import ModelConfig
from rlhf.data.chat import ChatFormat
from rlhf.data.template import DATE, template_date
from rlhf.errors import UserError, first_line
from rlhf.models.ends import settings_ends
from rlhf.types import ModelFacts as ModelFacts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What architectures call the longest sequence that they were made for."""
KNOWN_PADS = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<|fim_pad|>")
"""Padding tokens that tokenizers carry without always declaring them."""


def load_tokenizer(folder: str | Path, config: ModelConfig, day: date | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name, with the recipe's chat template if it gives one.

    Args:
        day: what a chat template that asks for the date is told, where the folder keeps no day; today without it. The
            tokenizer keeps it, so that a model saved with it is always prompted as it was trained.
    """
    from transformers import AutoTokenizer

    tokenizer = from_folder(AutoTokenizer, folder, config)
    if config.chat_template:
        template = Path(config.chat_template)
        if not template.is_file():
            raise UserError(f"model.chat_template: no file {template}", fix="give the path of a Jinja template")
        tokenizer.chat_template = _text(template)
    elif isinstance(tokenizer.chat_template, str):  # of the folder's own file, which may have been edited anywhere
        tokenizer.chat_template = tokenizer.chat_template.removeprefix("\ufeff")
    rows = None
    with suppress(UserError):  # a folder of a tokenizer alone
        rows = _embedding_rows(read_settings(folder, config))
    prepare_tokenizer(tokenizer, rows)
    if "strftime_now" in str(tokenizer.chat_template) and template_date(tokenizer) is None:
        tokenizer.init_kwargs[DATE] = (day or date.today()).isoformat()
    return tokenizer


def load_chat(folder: str | Path, config: ModelConfig, day: date | None = None) -> ChatFormat:
    """How conversations are written for the model of a folder, its settings' end tokens among the ends."""
    tokenizer = load_tokenizer(folder, config, day)
    return ChatFormat(tokenizer, read_facts(folder, config, tokenizer).end_tokens)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, embedding_rows: int | None = None) -> None:
    """Make sure, in place, that responses can end and that padding is not mistaken for the end.

    Training packs and never pads, but a saved model may be padded by others; when the padding token is the end token,
    they mask the end out of the loss and the model never learns to stop. So another one that the model knows is chosen:
    a known one of the vocabulary, or the unknown token. Where there is none the padding stays as it was: a new token
    would have no row in the embedding.

    Args:
        embedding_rows: token ids at or beyond this do not exist for the model; a padding token among them is dropped.

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
        place = vocabulary.get(token or "")
        return place is not None and (embedding_rows is None or place < embedding_rows)

    declared = tokenizer.pad_token
    if is_known(declared) and declared != tokenizer.eos_token:
        return
    candidates = [*KNOWN_PADS, tokenizer.unk_token]
    spare = next((token for token in candidates if is_known(token) and token != tokenizer.eos_token), None)
    tokenizer.pad_token = spare or (declared if is_known(declared) else None)


def read_facts(folder: str | Path, config: ModelConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> ModelFacts:
    """What the folder's settings say; ``tokenizer`` is that of the folder, where it is loaded already.

    Raises:
        UserError: the folder has no settings, or unusable ones.
    """
    settings = read_settings(folder, config)
    rows = _embedding_rows(settings)
    end = (tokenizer or load_tokenizer(folder, config)).eos_token_id
    ends = {end, *chain.from_iterable(settings_ends(folder).values())}
    return ModelFacts(
        context=_context(folder, settings),
        embedding_rows=rows,
        end_tokens=tuple(sorted(int(token) for token in ends if 0 <= token < rows)),
    )


def context_length(folder: str | Path, config: ModelConfig) -> int:
    """Longest sequence in tokens that the model was made for."""
    return _context(folder, read_settings(folder, config))


def read_settings(folder: str | Path, config: ModelConfig, **extra: Any) -> Any:
    """The folder's ``config.json`` as transformers reads it, with ``extra`` in place of its own values.

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


def _context(folder: str | Path, settings: Any) -> int:
    for name in CONTEXTS:
        length = getattr(settings.get_text_config(), name, None)
        if not isinstance(length, int | None) or (length or 1) < 0:
            what = f"the model in {str(folder)!r} has a context of {length!r:.40}"
            raise UserError(what, "it is a number of tokens", f"mend {name} in its config.json")
        if length:
            return length
    return 2**31


def _embedding_rows(settings: Any) -> int:
    return int(getattr(settings.get_text_config(), "vocab_size", None) or 2**31)


def _text(template: Path) -> str:
    try:
        return template.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"model.chat_template: {template} cannot be read", str(error), "save it as UTF-8") from error


# A folder's own texts: whatever goes wrong with them, they are at fault. Networks may also fail for want of memory.
TEXTS = ("AutoConfig", "AutoTokenizer")


def from_folder(auto: Any, folder: str | Path, model: ModelConfig, **options: Any) -> Any:
    """What one of transformers' ``Auto`` classes makes of a folder, or of a name on a hub.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        return auto.from_pretrained(str(folder), trust_remote_code=model.trust_remote_code, **options)
    except Exception as error:
        if auto.__name__ not in TEXTS and not isinstance(error, (OSError, ValueError, SafetensorError)):
            raise
        raise UserError(
            f"cannot load {auto.__name__} from {str(folder)!r}",
            why=first_line(error),
            fix="give a folder with a Hugging Face model in safetensors, or a hub name that this machine can reach",
        ) from error
