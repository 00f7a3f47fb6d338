from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.retrieval.words import sentences_of, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What's the Price?", ["what", "s", "the", "price"]),
        ("9 to 17, room 3-b", ["9", "to", "17", "room", "3", "b"]),
        ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
        ("駅 is a駅b", ["駅", "is", "a", "駅", "b"]),
        ("Größe café", ["größe", "café"]),
        ("...", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('He said "Hi." Then he left.', ['He said "Hi."', "Then he left."]),
        ("At 9.30 it opens\nand closes", ["At 9.30 it opens", "and closes"]),
        ("東京は首都。大阪は都市。", ["東京は首都。", "大阪は都市。"]),
        ("  ", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert sentences_of(text) == sentences


@given(st.text(max_size=60))
def test_sentences_are_verbatim_and_nothing_but_white_space_is_lost(text: str) -> None:
    sentences = sentences_of(text)
    assert all(sentence in text for sentence in sentences)
    assert "".join("".join(sentences).split()) == "".join(text.split())
