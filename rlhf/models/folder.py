"""What a model's folder says before any weight is read: its tokenizer and its context.

transformers' classes are imported where they are used: that takes seconds, and a process that only passes data on
needs none of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from rlhf.config.schema import ModelConfig
from rlhf.data.chat import prepare_tokenizer
from rlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: str | Path, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name, with the recipe's chat template if it gives one."""
    from transformers import AutoTokenizer

    tokenizer = from_folder(AutoTokenizer, folder, config)
    if config.chat_template:
        template = Path(config.chat_template)
        if not template.is_file():
            raise UserError(f"model.chat_template: no file {template}", fix="give the path of a Jinja template")
        tokenizer.chat_template = _text(template)
    prepare_tokenizer(tokenizer)
    return tokenizer


def context_length(folder: str | Path, config: ModelConfig) -> int:
    """Longest sequence in tokens that the model was made for."""
    from transformers import AutoConfig

    model_config = from_folder(AutoConfig, folder, config)
    length = getattr(model_config, "max_position_embeddings", None) or getattr(model_config, "n_positions", None)
    if not isinstance(length, int | None) or (length or 1) < 0:
        what = f"the model in {str(folder)!r} has a context of {length!r:.40}"
        raise UserError(what, "it is a number of tokens", "mend max_position_embeddings in its config.json")
    return length or 2**31


def _text(template: Path) -> str:
    try:
        return template.read_text(encoding="utf-8")
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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot load {auto.__name__} from {str(folder)!r}",
            why=reason,
            fix="give a folder with a Hugging Face model in safetensors, or a hub name that this machine can reach",
        ) from error
