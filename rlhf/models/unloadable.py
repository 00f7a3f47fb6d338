"""Finds out why a model folder cannot be loaded, and what its user can do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from safetensors import SafetensorError

from rlhf.errors import UserError

ANY_FIX = "give a folder with a Hugging Face model in safetensors, or a hub name that this machine can reach"
CODE_FIX = (
    "the model comes with Python code of its own (auto_map in config.json), which would run with your permissions on "
    "every node: read the model's *.py files, and only if you trust them set model.trust_remote_code=true"
)
ADAPTER, INDEX = "adapter_config.json", "model.safetensors.index.json"
WEIGHTS = ".safetensors"
LFS_POINTER = b"version https://git-lfs"
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def advise(folder: str | Path, architecture: str, error: Exception, is_trusted: bool = False) -> str:
    """The way to correct a folder that ``architecture`` (an ``Auto`` class of transformers) could not load.

    Args:
        is_trusted: whether ``model.trust_remote_code`` is on.
    """
    if not is_trusted and (_has_own_code(Path(folder)) or "trust_remote_code" in str(error)):
        return CODE_FIX
    return next(_advice(Path(folder), architecture, error), ANY_FIX)


def require_weights(folder: Path) -> None:
    """Check, without reading them, that a model folder of this machine holds weights in safetensors format.

    A hub name, or a folder that only other nodes see, is checked where it is loaded.

    Raises:
        UserError: it has none, or not all of them.
    """
    if not folder.is_dir():
        return
    try:
        files = {path.name: path for path in folder.iterdir() if path.is_file()}
        pointers = [name for name in sorted(files) if name.endswith(WEIGHTS) and _is_pointer(files[name])]
    except OSError as error:
        what = f"{error.filename or folder} cannot be read: {error.strerror}"
        raise UserError(what, "it belongs to a model", "make the whole folder readable") from error
    advice = (_pointer_advice(name, folder) for name in pointers)
    if fix := next(chain(advice, _advice_on_weights(files, OSError())), None):
        why = "models are loaded from safetensors alone: other formats can run code"
        raise UserError(f"the model folder {str(folder)!r} has no complete weights", why, fix)


def _advice(folder: Path, architecture: str, error: Exception) -> Iterator[str]:
    """Advice for each problem found, the most specific first."""
    if not folder.is_dir():
        return
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    if pointers := sorted(name for name, path in files.items() if _is_pointer(path)):
        yield _pointer_advice(pointers[0], folder)
    if ADAPTER in files and "config.json" not in files:
        yield "the folder holds only adapters: merge them into the base model (peft's merge_and_unload), and save that"
    if architecture == "AutoTokenizer" and files.keys().isdisjoint(TOKENIZERS):
        yield "the folder has no tokenizer: copy tokenizer.json and tokenizer_config.json of the model it came from"
    if architecture.startswith("AutoModel"):
        if "Unrecognized configuration class" in str(error):
            yield "give a decoder-only language model (docs/models.md lists kinds that were tried)"
        yield from _advice_on_weights(files, error)


def _pointer_advice(name: str, folder: Path) -> str:
    return f"{name} is a pointer of Git LFS, not the file itself: run `git lfs pull` in {folder}"


def _advice_on_weights(files: dict[str, Path], error: Exception) -> Iterator[str]:
    if absent := sorted(_shards(files) - files.keys()):
        yield f"{absent[0]} is listed in {INDEX} and absent ({len(absent)} such files): download the model again"
    weights = [name for name in files if name.endswith(WEIGHTS)]
    pickles = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth")))
    if pickles and not weights:
        yield f"{pickles[0]} is a pickle, which can run code: save the model as safetensors where you trust it"
    if INDEX not in files and any("-of-" in name for name in weights):
        yield f"{INDEX} is absent beside numbered files of weights: copy it from where the model came from"
    if not weights:
        yield "the folder has no weights (model.safetensors): download the model again"
    elif isinstance(error, SafetensorError):
        yield "a file of weights is damaged or incomplete: download the model again"


def _shards(files: dict[str, Path]) -> set[str]:
    """Names of the weight files that the index lists."""
    if INDEX not in files:
        return set()
    with suppress(OSError, ValueError, KeyError, AttributeError):  # a damaged index
        return set(json.loads(files[INDEX].read_bytes())["weight_map"].values())
    return set()


def _has_own_code(folder: Path) -> bool:
    """Whether a settings file of the folder names classes in the folder's own Python files."""
    for name in ("config.json", "tokenizer_config.json"):
        with suppress(OSError, ValueError, AttributeError, RecursionError):
            if json.loads((folder / name).read_bytes()).get("auto_map"):
                return True
    return False


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER
