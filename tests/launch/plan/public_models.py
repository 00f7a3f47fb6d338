"""Public models' configurations, from which ``launch/plan/public.json`` is written:

python -m tests.launch.plan.public_models

Each row holds the sizes of the model's ``config.json`` at ``https://huggingface.co/<name>/blob/main/config.json``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from transformers import AutoConfig

from launch.plan.public import TABLE
from launch.plan.shapes import ModelShape, count_shape

_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
_NAMES = {
    "gpt2": ("n_layer", "n_embd", "n_head", "vocab_size", "n_positions"),
    "gpt_neox": tuple(name for name in _SIZES if name != "num_key_value_heads"),
}
_TIED = {"tie_word_embeddings": True}
_EXTRA: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B"), _TIED),
    **dict.fromkeys((f"Qwen/Qwen2.5-{size}" for size in ("0.5B", "1.5B", "3B")), _TIED),
    "Qwen/Qwen3-8B": {"head_dim": 128},
    "google/gemma-2-9b": {"head_dim": 256},
    "mistralai/Mixtral-8x7B-v0.1": {"num_local_experts": 8, "num_experts_per_tok": 2},
}
MODELS: dict[str, tuple[str, tuple[int, ...]]] = {
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
    "Qwen/Qwen3-8B": ("qwen3", (36, 4096, 32, 8, 12288, 151936, 40960)),
    "google/gemma-2-9b": ("gemma2", (42, 3584, 16, 8, 14336, 256000, 8192)),
    "mistralai/Mixtral-8x7B-v0.1": ("mixtral", (32, 4096, 32, 8, 14336, 32000, 32768)),
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
"""Hub name → model type, and the sizes in the order of ``_NAMES``, or of ``_SIZES``."""


def count(name: str) -> ModelShape:
    """Count the shape of a model of the table."""
    kind, sizes = MODELS[name]
    given = dict(zip(_NAMES.get(kind, _SIZES), sizes, strict=True))
    return count_shape(AutoConfig.for_model(kind, **{**given, **_EXTRA.get(name, {})}), name)


def rows() -> str:
    """The table as JSON, one line per model."""
    found = {name: {key: value for key, value in asdict(count(name)).items() if key != "name"} for name in MODELS}
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in found.items()) + "\n}\n"


if __name__ == "__main__":
    TABLE.write_text(rows(), encoding="utf-8")
