"""The work that is timed: a step of PPO with four small models and responses of one length.

A Llama of 3.3 million parameters in float32; 128 prompts of 16 tokens, 64 new tokens each; policy, reference, reward
model and critic; 4 epochs over 2 minibatches of 64 samples.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from string import ascii_uppercase, digits
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from rlhf.models.scratch import train_tokenizer

SAMPLES, PROMPT, NEW = 128, 16, 64
EPOCHS, MINIBATCHES = 4, 2
VOCABULARY = 512
LEARNING_RATE = 1e-5
BETA, GAMMA, LAMBDA = 0.05, 1.0, 0.95
CLIP = 0.2
SEED = 0


def make(folder: Path) -> None:
    """Write the models and the prompts' file into ``folder``."""
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(["a small text of small letters"], VOCABULARY)
    policy = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    never_end(policy, tokenizer.eos_token_id)
    policy.save_pretrained(folder / "policy")
    for name in ("reward", "critic"):
        scalar = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
        scalar.save_pretrained(folder / name)
    for name in ("policy", "reward", "critic"):
        tokenizer.save_pretrained(folder / name)
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts()]
    (folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")


def never_end(model: LlamaForCausalLM, end: int) -> None:
    """Make the end token impossible, so that every response has its longest length.

    The first dimension of every embedding is large beside what the layers add to it, so that it stays positive in the
    last hidden state; the output head, which is the embedding, gives the end token a large negative weight there.
    """
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[:, 0] = 1.0
        weight[end, 0] = -40.0


def prompts() -> list[str]:
    """Texts of 16 tokens: the tokenizer has joined small letters alone."""
    draw = random.Random(SEED)
    return ["".join(draw.choices(ascii_uppercase + digits, k=PROMPT)) for _ in range(SAMPLES)]


def recipe(folder: Path, name: str, budget: int, steps: int) -> dict[str, Any]:
    """The same work as a recipe: ``budget`` tokens a row, one rank and one thread for each role."""
    role = {"micro_batch_tokens": budget}
    optimizer = {"lr": LEARNING_RATE, "schedule": "constant", "max_grad_norm": 0.0}
    return {
        "name": name,
        "runs_dir": str(folder / "runs"),
        "seed": SEED,
        "model": {"path": str(folder / "policy"), "dtype": "float32"},
        "data": {
            "prompts": str(folder / "prompts.jsonl"),
            "held_out_fraction": 0.0,
            "max_prompt_length": PROMPT,
            "max_response_length": NEW,
        },
        "rewards": {"model": {"model": str(folder / "reward")}},
        "ppo": {
            "steps": steps,
            "batch_size": SAMPLES,
            "policy_init": str(folder / "policy"),
            "critic_init": str(folder / "critic"),
            "optimizer": optimizer,
            "critic_optimizer": optimizer,
        },
        "algorithm": {
            "epochs": EPOCHS,
            "minibatches": MINIBATCHES,
            "kl_coef": BETA,
            "gamma": GAMMA,
            "lam": LAMBDA,
            "clip_range": CLIP,
        },
        "rollout": {"max_response_length": NEW, "enforce_eager": True},
        "placement": {"device": "cpu", **dict.fromkeys(("policy", "critic", "reference", "reward"), role)},
        "tracking": {"progress": False, "samples_per_step": 1},
    }
