"""Small random sequence classifiers of many architectures, encoders and decoders, and tokenizers for encoders."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.rlhf.tiny import VOCABULARY

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "max_position_embeddings": 80}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 80}
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
DEBERTA |= {"type_vocab_size": 0, "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_buckets": 16}
DEBERTA |= {"pooler_hidden_size": 32, "pooler_hidden_act": "gelu"}
ENDS = {"bos_token_id": None, "eos_token_id": 1}

ENCODERS: dict[str, tuple[type, dict[str, Any]]] = {
    "bert": (hf.BertConfig, SIZES),
    "roberta": (hf.RobertaConfig, {**SIZES, "pad_token_id": 1}),
    "deberta_v2": (hf.DebertaV2Config, {**SIZES, **DEBERTA}),
    "modernbert": (
        hf.ModernBertConfig,
        {**SIZES, "pad_token_id": 0, "local_attention": 8},
    ),
    "electra": (hf.ElectraConfig, {**SIZES, "embedding_size": 16}),
    "albert": (hf.AlbertConfig, {**SIZES, "embedding_size": 16}),
}
DECODERS: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, {**SIZES, **ENDS, "pad_token_id": None}),
    "llama, padding is the end": (hf.LlamaConfig, {**SIZES, **ENDS, "pad_token_id": 1}),
    "gpt2": (hf.GPT2Config, {**GPT2, **ENDS}),
    "qwen2": (hf.Qwen2Config, {**SIZES, **ENDS, "num_key_value_heads": 1, "pad_token_id": 0}),
    "gemma2": (hf.Gemma2Config, {**SIZES, **ENDS, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8}),
    "mistral": (hf.MistralConfig, {**SIZES, **ENDS, "num_key_value_heads": 1, "sliding_window": 8}),
    "opt": (hf.OPTConfig, {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": (hf.BloomConfig, {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 2}),
}

BART: dict[str, Any] = {"vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
BART |= {"max_position_embeddings": 80, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER_DECODERS: dict[str, tuple[type, dict[str, Any]]] = {
    "bart": (hf.BartConfig, {**BART, "decoder_start_token_id": 2})
}


def tiny_classifier(name: str, labels: int = 1, **changes: Any) -> hf.PreTrainedModel:
    """A classifier whose random weights are large enough to matter."""
    config, settings = {**ENCODERS, **DECODERS, **ENCODER_DECODERS}[name]
    torch.manual_seed(0)
    made = hf.AutoModelForSequenceClassification.from_config(config(**{**settings, "num_labels": labels, **changes}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def pair_tokenizer(kind: str, size: int = 300) -> hf.PreTrainedTokenizerFast:
    """Byte-level BPE with an encoder's special tokens: BERT's with token types, or RoBERTa's without. No end token."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    begin, end, pad = ("[CLS]", "[SEP]", "[PAD]") if kind == "bert" else ("<s>", "</s>", "<pad>")
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[pad, begin, end], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["where is the inn? it is open " * 5], trainer)
    pair = f"{begin} $A {end} $B:1 {end}:1" if kind == "bert" else f"{begin} $A {end} {end} $B {end}"
    made.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", pair=pair, special_tokens=[(begin, 1), (end, 2)]
    )
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if kind == "bert" else [])]
    names = {"cls_token": begin, "sep_token": end, "pad_token": pad, "model_input_names": inputs}
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, **names)
