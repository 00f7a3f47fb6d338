"""Small models of many architectures of the installed transformers, to hold the project's promises to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rlhf.config.schema import LoRAConfig
from rlhf.models.examination import Examination
from rlhf.models.examine import Examiner
from rlhf.models.lora import ALL, adapters, add_adapters, merged, plain_tensors
from rlhf.models.packed_row import pack_row, without_cache
from rlhf.models.policy import PolicyNet
from rlhf.models.sequence_parallel import RowNet
from rlhf.types import Sequences

VOCABULARY = 128
_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
_WIDTH = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 512}
_SHAPE = {**_WIDTH, "intermediate_size": 96, "num_key_value_heads": 2}
_GROUPED = {**_SHAPE, "num_attention_heads": 4, "head_dim": 32}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512}

TARGETS: Mapping[str, tuple[str, ...]] = {"Mamba": ("in_proj", "x_proj", "out_proj")}
"""Layers for adapters where not all linear ones can have them."""
CONFIGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", _GROUPED),
    "Qwen 2": ("Qwen2", {**_SHAPE, "tie_word_embeddings": True}),
    "Qwen 3": ("Qwen3", _GROUPED),
    "Qwen 3 MoE": ("Qwen3Moe", {**_GROUPED, **_EXPERTS, "num_experts": 4}),
    "Qwen 3 Next": (
        "Qwen3Next",
        {
            **_GROUPED,
            **_EXPERTS,
            "num_experts": 4,
            "shared_expert_intermediate_size": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "Gemma 2": ("Gemma2", {**_GROUPED, "sliding_window": 8, "query_pre_attn_scalar": 32}),
    "Gemma 3": (
        "Gemma3Text",
        {**_GROUPED, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "Mistral": ("Mistral", {**_GROUPED, "sliding_window": 8}),
    "Mixtral": ("Mixtral", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Phi": ("Phi", {**_SHAPE, "partial_rotary_factor": 0.5}),
    "Phi 3": ("Phi3", _SHAPE),
    "OPT": ("OPT", {**_WIDTH, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "Bloom": ("Bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 2}),
    "Falcon, rotary": ("Falcon", {**_WIDTH, "new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}),
    "Falcon, ALiBi": ("Falcon", {**_WIDTH, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "MPT": ("Mpt", {"d_model": 64, "n_heads": 2, "n_layers": 2, "max_seq_len": 512}),
    "GPT-J": ("GPTJ", {**_GPT, "rotary_dim": 16}),
    "GPT-Neo": (
        "GPTNeo",
        {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": 512,
        },
    ),
    "GPT-NeoX": ("GPTNeoX", {**_WIDTH, "intermediate_size": 96}),
    "GPT-2": ("GPT2", _GPT),
    "GPT-BigCode": ("GPTBigCode", _GPT),
    "LFM2": (
        "Lfm2",
        {**_SHAPE, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False},
    ),
    "Granite": ("Granite", {**_GROUPED, "logits_scaling": 2.0, "residual_multiplier": 0.5}),
    "Granite hybrid": (
        "GraniteMoeHybrid",
        {
            **_SHAPE,
            **_MAMBA,
            "shared_intermediate_size": 64,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "layer_types": ["mamba", "attention"],
            "logits_scaling": 2.0,
        },
    ),
    "Mamba": ("Mamba", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}),
    "Mamba 2": (
        "Mamba2",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 16,
            "state_size": 16,
            "n_groups": 1,
            "chunk_size": 16,
        },
    ),
    "RecurrentGemma": (
        "RecurrentGemma",
        {
            **_SHAPE,
            "num_hidden_layers": 3,
            "head_dim": 32,
            "lru_width": 64,
            "attention_window_size": 8,
            "block_types": ["recurrent", "recurrent", "attention"],
        },
    ),
    "Falcon H1": (
        "FalconH1",
        {**_SHAPE, **_MAMBA, "head_dim": 32, "mamba_d_ssm": 128, "lm_head_multiplier": 0.5},
    ),
    "Bamba": (
        "Bamba",
        {**_SHAPE, **_MAMBA, "attn_layer_indices": [1], "mamba_expand": 2},
    ),
    "SmolLM 3": ("SmolLM3", {**_GROUPED, "no_rope_layers": [1, 0]}),
    "OLMo": ("Olmo", _SHAPE),
    "OLMo 2": ("Olmo2", _SHAPE),
    "OLMoE": ("Olmoe", {**_SHAPE, "num_experts": 4, "num_experts_per_tok": 2}),
    "StarCoder 2": ("Starcoder2", {**_SHAPE, "sliding_window": 8}),
    "StableLM": ("StableLm", {**_SHAPE, "partial_rotary_factor": 0.5}),
    "Cohere": ("Cohere", {**_SHAPE, "logit_scale": 0.25}),
    "Cohere 2": (
        "Cohere2",
        {**_GROUPED, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "logit_scale": 0.25},
    ),
    "gpt-oss": (
        "GptOss",
        {
            **_GROUPED,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "GLM 4": ("Glm4", {**_GROUPED, "partial_rotary_factor": 0.5}),
    "EXAONE 4": (
        "Exaone4",
        {**_GROUPED, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "DeepSeek V3": (
        "DeepseekV3",
        {
            **_SHAPE,
            **_EXPERTS,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 16,
            "v_head_dim": 16,
        },
    ),
    "Llama 4": (
        "Llama4Text",
        {
            **_GROUPED,
            "intermediate_size_mlp": 96,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "attention_chunk_size": 8,
            "moe_layers": [1],
            "no_rope_layers": [1, 0],
        },
    ),
}
"""By the name that people know: transformers' name of the configuration class, and what makes it small."""


def small_config(name: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of a small model."""
    prefix, settings = CONFIGS[name]
    made: PreTrainedConfig = getattr(hf, f"{prefix}Config")(**{**_TOKENS, **settings, **changes})
    return made


def small_model(name: str, **changes: Any) -> PreTrainedModel:
    """A causal language model whose random weights are large enough that what leaks is seen."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(name, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


TEMPERATURE = 0.7


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A small model here against the same model in plain PyTorch, one sequence at a time, with eager attention."""

    examination: Examination
    logprobs: float
    """Largest difference, in nats."""
    gradient: float
    """Largest difference of a parameter's gradient, over the largest gradient."""
    adapted: float
    """Largest difference of log-probabilities with adapters from those of the plain model with them merged."""


def examined(net: RowNet, parameters: int = 10**5) -> Examination:
    """The examination of a network that is not under DeepSpeed."""

    def run(function: Callable[..., Any], *arguments: Any) -> Any:
        with torch.no_grad():
            return function(*arguments)

    examiner = Examiner(
        network=net,
        run=run,
        largest=list,
        device=torch.device("cpu"),
        parameters=parameters,
        may_pack=True,
        temperature=TEMPERATURE,
    )
    return examiner.examine()


def compare(name: str, sequences: Sequences) -> Compared:
    """Examine a small model, then compare what it computes of these sequences in the form that was found."""
    lm, plain = small_model(name), small_model(name)
    net = PolicyNet(lm)
    found, row = examined(net), pack_row(sequences, range(len(sequences)), "cpu")
    ours, expected = net(row, TEMPERATURE)[0], plain_logprobs(plain, sequences)
    weights = torch.linspace(-1, 1, len(ours))
    (weights * ours).sum().backward()
    (weights * expected).sum().backward()
    gradient = largest_difference(lm, plain)
    return Compared(
        examination=found,
        logprobs=float((ours - expected).detach().abs().max()),
        gradient=gradient,
        adapted=_adapted(name, net, sequences),
    )


def plain_logprobs(lm: PreTrainedModel, sequences: Sequences) -> Tensor:
    """(R,) log-probabilities of the responses from transformers' logits, one sequence at a time."""
    if lm._can_set_attn_implementation():
        lm.set_attn_implementation("eager")
    found = []
    for i in range(len(sequences)):
        tokens = torch.tensor([*sequences.prompt(i), *sequences.response(i)], dtype=torch.long)
        begin = int(sequences.prompt_lengths[i])
        logits = lm(tokens[None], **without_cache(lm)).logits[0, begin - 1 : -1].float() / TEMPERATURE
        found.append(torch.distributions.Categorical(logits=logits).log_prob(tokens[begin:]))
    return torch.cat(found)


def largest_difference(model: nn.Module, other: nn.Module) -> float:
    """Of any parameter's gradient, over the largest gradient; infinite where one of them has none."""
    pairs = [(a.grad, b.grad) for a, b in zip(model.parameters(), other.parameters(), strict=True)]
    if any((a is None) != (b is None) for a, b in pairs):
        return float("inf")
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    return float(max((a - b).abs().max() for a, b in both) / max(b.abs().max() for _, b in both))


def _adapted(name: str, net: PolicyNet, sequences: Sequences) -> float:
    """Give the network adapters that matter, and merge them into a plain model."""
    add_adapters(net.lm, LoRAConfig(rank=2, targets=TARGETS.get(name, (ALL,))), seed=0)
    examined(net)
    torch.manual_seed(1)
    with torch.no_grad():
        for adapter in adapters(net.lm).values():
            adapter.b.normal_(std=0.1)
        named, found = plain_tensors(net.lm), adapters(net.lm)
        whole = small_model(name)
        whole.load_state_dict({key: merged(key, named, found) for key in named})
        ours = net(pack_row(sequences, range(len(sequences)), "cpu"), TEMPERATURE)[0]
        return float((ours - plain_logprobs(whole, sequences)).abs().max())
