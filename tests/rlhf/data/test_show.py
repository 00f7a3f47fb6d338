"""The page of ``rlhf data``, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlhf.config.schema import DataConfig
from rlhf.data.chat import ChatFormat
from rlhf.data.show import SHOWN, TRAINED, pieces_of, show_stage
from rlhf.data.stages import StageData
from rlhf.records import DataFile
from rlhf.types import Example, ModelFacts, Pair, Prompt

FACTS = ModelFacts(context=512, embedding_rows=300, end_tokens=(0,))


def ids(text: str, tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    return np.array(tokenizer(text)["input_ids"], dtype=np.int32)


def page(items: tuple, tokenizer: PreTrainedTokenizerFast, colour: bool = False):
    data = StageData(train=items, held_out=(), bad=(), report="the report", files=(DataFile("a.jsonl", 3, "ab" * 16),))
    return show_stage("sft", data, ChatFormat(tokenizer), FACTS, DataConfig(), rows=1, colour=colour)


def test_trained_tokens_stand_in_brackets(tokenizer: PreTrainedTokenizerFast) -> None:
    response = ids("ab c<end>", tokenizer)
    mask = np.array([True, True, False, True, True])
    text = page((Example(prompt=ids("x\n", tokenizer), response=response, mask=mask),), tokenizer).plain
    assert "prompt, 2 tokens: x│↵\n\n" in text
    assert "response, 5 tokens: ⟦a│b⟧ ⟦c│<end>⟧\n" in text


def test_trained_tokens_are_coloured_where_colours_are_seen(tokenizer: PreTrainedTokenizerFast) -> None:
    pair = Pair(
        prompt=ids("x", tokenizer),
        chosen=ids("a<end>", tokenizer),
        rejected=ids("b", tokenizer),
        margin=0.0,
        prompt_id=0,
    )
    shown = page((pair,), tokenizer, colour=True)
    assert "⟦" not in shown.plain and "chosen, 2 tokens: a│<end>\nrejected, 1 tokens: b\n" in shown.plain
    assert [shown.plain[span.start : span.end] for span in shown.spans if span.style == TRAINED] == ["a", "<end>", "b"]


def test_a_character_of_several_tokens_is_one_piece(tokenizer: PreTrainedTokenizerFast) -> None:
    """Three bytes of 空 and four of 👍 are as many tokens here; each byte of a broken character is shown alone."""
    assert pieces_of(ids("空a👍", tokenizer).tolist(), tokenizer) == [("空", 3), ("a", 1), ("👍", 4)]
    broken = ids("空", tokenizer).tolist()[:2]
    assert [count for _, count in pieces_of([*broken, *ids("a", tokenizer).tolist()], tokenizer)] == [1, 1, 1]


def test_the_middle_of_a_long_text_is_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    text = page((Prompt(id=0, tokens=tuple(ids("a" * 80 + "b" * 80 + "c" * 80, tokenizer).tolist())),), tokenizer).plain
    assert f"prompt, 240 tokens: {'│'.join('a' * SHOWN)} … 96 tokens … {'│'.join('c' * SHOWN)}\n" in text


def test_control_characters_of_the_data_do_not_reach_the_screen(tokenizer: PreTrainedTokenizerFast) -> None:
    text = page((Prompt(id=0, tokens=tuple(ids("a\x1b[31m\rb", tokenizer).tolist())),), tokenizer).plain
    assert "\x1b" not in text and "\r" not in text and "a│∅│[│3│1│m│␍│b" in text


def test_lengths_counts_files_and_end_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    """Prompts of 1 to 20 letters with answers of 2: quantiles by counting, bins of three."""
    items = tuple(
        Example(prompt=ids("a" * n, tokenizer), response=ids("bc", tokenizer), mask=np.ones(2, dtype=np.bool_))
        for n in range(1, 21)
    )
    lines = page(items, tokenizer).plain.splitlines()
    assert lines[0] == "── sft ──" and lines[1] == "the report"
    assert "a.jsonl: 3 rows, digest abababababab" in lines[2]
    assert "end tokens: <end> (0)" in lines[3]
    assert "prompt 256, response 256; the model's context: 512" in lines[4]
    assert [line.split() for line in lines[6:9]] == [
        ["prompt", "1", "10", "19", "20"],
        ["response", "2", "2", "2", "2"],
        ["prompt", "+", "response", "3", "12", "21", "22"],
    ]
    bins = [line.split() for line in lines[9:16]]
    assert [(row[0], row[2], row[-1]) for row in bins[:2]] == [("3", "5", "3"), ("6", "8", "3")]
    assert sum(int(row[-1]) for row in bins) == 20


@pytest.mark.parametrize("train", [()])
def test_no_rows_have_no_lengths(tokenizer: PreTrainedTokenizerFast, train: tuple) -> None:
    assert "lengths" not in page(train, tokenizer).plain


def test_the_form_of_messages_is_told_where_there_are_any(tokenizer: PreTrainedTokenizerFast) -> None:
    data = StageData(train=(), held_out=(), bad=(), report="the report", files=())
    shown = [
        show_stage("sft", each, ChatFormat(tokenizer), FACTS, DataConfig(), rows=1, colour=False).plain
        for each in (data, replace(data, conversations=2))
    ]
    assert ["rows of messages are written by a transcript" in text for text in shown] == [False, True]
    assert all("end tokens: <end>" in text for text in shown)
