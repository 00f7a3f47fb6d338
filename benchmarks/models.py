"""Writes the benchmark's models and prompts: random weights, and a known probability that a response ends."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from string import ascii_uppercase, digits

import torch
from scipy.optimize import brentq
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from benchmarks import workload
from benchmarks.workload import Size, Workload
from rlhf.device import Device
from rlhf.models.scratch import train_tokenizer

NEVER = -1e4
"""Weight of the end token that makes its probability 0."""
CALIBRATED = 64
"""Random texts by which the end token's weight is fitted."""
CONTEXT = 1024
BYTES = 512
"""Vocabulary of the tokenizer: every byte, two special tokens, and what it joins."""


def make(work: Workload, folder: Path, device: Device = "cpu") -> None:
    """Write the workload's models under ``folder``, and ``prompts.jsonl``; what is there already stays.

    ``policy`` is also the reference, and ``reward`` the critic's initial model.
    """
    tokenizer, models = train_tokenizer(["a small text of small letters"], BYTES), folder / work.models
    if not (models / "reward" / "config.json").exists():
        with torch.device(device):
            _make_models(work, models, tokenizer)
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts(work.samples)]
    (folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")


def _make_models(work: Workload, models: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(workload.SEED)
    policy = build(workload.SIZES[work.size], work.dtype, tokenizer)
    steer_end(policy, 0.0 if work.mean is None else end_probability(work.mean, work.new))
    policy.save_pretrained(models / "policy")
    reward = AutoModelForSequenceClassification.from_pretrained(models / "policy", dtype=policy.dtype, num_labels=1)
    reward.save_pretrained(models / "reward")
    for name in ("policy", "reward"):
        tokenizer.save_pretrained(models / name)


def build(size: Size, dtype: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A randomly initialised causal language model."""
    config = AutoConfig.for_model(
        size.architecture,
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def end_probability(mean: float, longest: int) -> float:
    """Probability p of an end at each token for which responses, cut at ``longest`` tokens, have this mean length.

    The mean is Σ_{k<longest} (1 − p)^k = (1 − (1 − p)^longest) / p.
    """
    return float(brentq(lambda p: -math.expm1(longest * math.log1p(-p)) / p - mean, 1e-9, 1 - 1e-9))


@torch.no_grad()
def steer_end(model: PreTrainedModel, probability: float) -> None:
    """Give the end token about this probability at every position.

    The first dimension of the residual stream is made a constant: every embedding has 1 there and no layer writes to
    it. Behind the last norm it is positive, so the end token's weight in this dimension of the output head, which is
    the embedding, sets its logit. The other tokens keep about equal probabilities.
    """
    end, weight = model.config.eos_token_id, model.get_input_embeddings().weight
    weight[:, 0] = 1.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    weight[end] = 0.0
    weight[end, 0] = _end_weight(model, end, probability) if probability else NEVER


def _end_weight(model: PreTrainedModel, end: int, probability: float) -> float:
    """The weight whose mean probability over random texts is the wanted one."""
    draw = torch.Generator().manual_seed(workload.SEED)
    tokens = torch.randint(2, model.config.vocab_size, (CALIBRATED, 128), generator=draw)
    states = model.model(input_ids=tokens, use_cache=False).last_hidden_state.flatten(0, 1).float()
    logits = states @ model.get_output_embeddings().weight.float().T
    logits[:, end] = -torch.inf
    others, height = logits.logsumexp(dim=-1), states[:, 0]
    return float(brentq(lambda w: float(torch.sigmoid(w * height - others).mean()) - probability, -100.0, 100.0))


def prompts(number: int) -> list[str]:
    """Texts of 16 tokens: the tokenizer has joined small letters alone."""
    draw = random.Random(workload.SEED)
    return ["".join(draw.choices(ascii_uppercase + digits, k=workload.PROMPT)) for _ in range(number)]
