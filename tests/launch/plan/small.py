"""Recipes and shapes that the planning tests count by hand."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig

from launch.plan.fit import changed
from launch.plan.public import find_shape
from launch.plan.shapes import ModelShape, count_shape
from rlhf.config.schema import Recipe

TINY = count_shape(
    LlamaConfig(
        num_hidden_layers=2,
        hidden_size=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        vocab_size=100,
        max_position_embeddings=64,
    ),
    "tiny",
)
"""A layer: q and o 8·8, k and v 8·4, three of 8·16: 576 in matrices, 592 with its norms."""


def recipe(model: str = "meta-llama/Llama-3.1-8B", **settings: Any) -> Recipe:
    """A recipe in bfloat16; setting names have ``__`` for dots."""
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    return changed(Recipe(name="small"), {"model.path": model, "model.dtype": "bfloat16", **dotted})


def find(name: str) -> ModelShape:
    """Find ``tiny`` or a public model, independent of this machine's hub cache."""
    return TINY if name == "tiny" else find_shape(name, {"HF_HOME": "/nowhere"})
