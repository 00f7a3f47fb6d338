"""Looks up a model's shape: in its folder, the local hub cache, and a table of public models' configs.

Each row of the table holds the sizes of the model's ``config.json`` at
``https://huggingface.co/<name>/blob/main/config.json``. A test compares the parameters computed from a row with the
count on the same page.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.plan.shapes import ModelShape, shape_of
from rlhf.errors import UserError

_NAMES = {
    "gpt2": ("n_layer", "n_embd", "n_head", "vocab_size", "n_positions"),
    "gpt_neox": (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ),
}
_NAMES |= dict.fromkeys(
    ("llama", "mistral", "qwen2"),
    (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ),
)
TIED = {"meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B"}
TIED |= {f"Qwen/Qwen2.5-{size}" for size in ("0.5B", "1.5B", "3B")}

PUBLIC: dict[str, tuple[str, tuple[int, ...]]] = {
    "meta-llama/Meta-Llama-3-8B": ("llama", (32, 4096, 32, 8, 14336, 128256, 8192)),
    "meta-llama/Meta-Llama-3-70B": ("llama", (80, 8192, 64, 8, 28672, 128256, 8192)),
    "meta-llama/Llama-3.1-8B": ("llama", (32, 4096, 32, 8, 14336, 128256, 131072)),
    "meta-llama/Llama-3.1-70B": ("llama", (80, 8192, 64, 8, 28672, 128256, 131072)),
    "meta-llama/Llama-3.1-405B": ("llama", (126, 16384, 128, 8, 53248, 128256, 131072)),
    "meta-llama/Llama-3.2-1B": ("llama", (16, 2048, 32, 8, 8192, 128256, 131072)),
    "meta-llama/Llama-3.2-3B": ("llama", (28, 3072, 24, 8, 8192, 128256, 131072)),
    "meta-llama/Llama-3.3-70B-Instruct": ("llama", (80, 8192, 64, 8, 28672, 128256, 131072)),
    "mistralai/Mistral-7B-v0.1": ("mistral", (32, 4096, 32, 8, 14336, 32000, 32768)),
    "mistralai/Mistral-7B-v0.3": ("mistral", (32, 4096, 32, 8, 14336, 32768, 32768)),
    "Qwen/Qwen2.5-0.5B": ("qwen2", (24, 896, 14, 2, 4864, 151936, 32768)),
    "Qwen/Qwen2.5-1.5B": ("qwen2", (28, 1536, 12, 2, 8960, 151936, 131072)),
    "Qwen/Qwen2.5-3B": ("qwen2", (36, 2048, 16, 2, 11008, 151936, 32768)),
    "Qwen/Qwen2.5-7B": ("qwen2", (28, 3584, 28, 4, 18944, 152064, 131072)),
    "Qwen/Qwen2.5-14B": ("qwen2", (48, 5120, 40, 8, 13824, 152064, 131072)),
    "Qwen/Qwen2.5-32B": ("qwen2", (64, 5120, 40, 8, 27648, 152064, 131072)),
    "Qwen/Qwen2.5-72B": ("qwen2", (80, 8192, 64, 8, 29568, 152064, 131072)),
    "EleutherAI/pythia-160m": ("gpt_neox", (12, 768, 12, 3072, 50304, 2048)),
    "EleutherAI/pythia-410m": ("gpt_neox", (24, 1024, 16, 4096, 50304, 2048)),
    "EleutherAI/pythia-1b": ("gpt_neox", (16, 2048, 8, 8192, 50304, 2048)),
    "EleutherAI/pythia-1.4b": ("gpt_neox", (24, 2048, 16, 8192, 50304, 2048)),
    "EleutherAI/pythia-2.8b": ("gpt_neox", (32, 2560, 32, 10240, 50304, 2048)),
    "EleutherAI/pythia-6.9b": ("gpt_neox", (32, 4096, 32, 16384, 50432, 2048)),
    "EleutherAI/pythia-12b": ("gpt_neox", (36, 5120, 40, 20480, 50688, 2048)),
    "openai-community/gpt2": ("gpt2", (12, 768, 12, 50257, 1024)),
    "openai-community/gpt2-medium": ("gpt2", (24, 1024, 16, 50257, 1024)),
    "openai-community/gpt2-large": ("gpt2", (36, 1280, 20, 50257, 1024)),
    "openai-community/gpt2-xl": ("gpt2", (48, 1600, 25, 50257, 1024)),
}
"""Hub name → model type, and the sizes in the order of ``_NAMES``."""
SAME_SHAPE = ("-Instruct", "-Instruct-v0.1", "-Instruct-v0.3", "-deduped")
"""Name suffixes of models that have the shape of the model without the suffix."""


def find_shape(path: str, environment: Mapping[str, str] = os.environ) -> ModelShape:
    """Find the shape of a model folder or hub name, without a download.

    Raises:
        UserError: no config is found here or in the table, or the config is incomplete.
    """
    for folder in (Path(path).expanduser(), *_cached(path, environment)):
        if (folder / "config.json").is_file():
            return shape_of(_read(folder / "config.json"), path)
    if config := public_config(path):
        return shape_of(config, path)
    near = difflib.get_close_matches(path, PUBLIC, n=1, cutoff=0.5)
    raise UserError(
        f"the shape of {path!r} is not known here",
        "neither a folder of that name nor the hub cache has its config.json, nor does the table of public models",
        (f"did you mean {near[0]}? Or: " if near else "") + "give a folder that holds the model's config.json",
    )


def public_config(name: str) -> dict[str, Any] | None:
    """A model's config.json according to the table, or None."""
    base = next((known for known in PUBLIC for ending in ("", *SAME_SHAPE) if _with(known, ending) == name), None)
    if base is None:
        return None
    kind, sizes = PUBLIC[base]
    tied = kind == "gpt2" or base in TIED
    return {"model_type": kind, "tie_word_embeddings": tied, **dict(zip(_NAMES[kind], sizes, strict=True))}


def _with(known: str, ending: str) -> str:
    """The name with a suffix, placed before the version if the name has one."""
    version = ending.rpartition("-")[2]
    if version.startswith("v0") and known.endswith(f"-{version}"):
        return known.removesuffix(f"-{version}") + ending
    return known + ending


def _cached(path: str, environment: Mapping[str, str]) -> list[Path]:
    """Snapshots of a hub name in huggingface_hub's cache, newest first."""
    home = environment.get("HF_HOME") or str(Path("~/.cache/huggingface").expanduser())
    hub = Path(environment.get("HF_HUB_CACHE") or Path(home) / "hub")
    snapshots = hub / f"models--{path.replace('/', '--')}" / "snapshots"
    found = [folder for folder in snapshots.glob("*") if folder.is_dir()]
    return sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}", str(error), "give the config.json that came with the model") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} is not a model's config", "it is not a JSON object", "give the model's own")
    return config
