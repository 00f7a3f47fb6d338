"""Tags of quotes and answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.retrieval.answers import TAGS, compose, extract_answer, extract_quotes, has_tag

plain = st.text(max_size=40).filter(lambda text: not has_tag(text) and "#" not in text and "<" not in text)


def test_the_form_of_a_completion() -> None:
    assert compose(["One."], "1") == " ##begin_quote##One.##end_quote## <ANSWER>: 1"
    both = " ##begin_quote##One.##end_quote## ##begin_quote##Two.##end_quote## <ANSWER>: 1, 2"
    assert compose(["One.", "Two."], "1, 2") == both


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (" ##begin_quote##It is 4.##end_quote## <ANSWER>: 4 \n", "4"),
        ("<ANSWER>: first <ANSWER>: last", "last"),
        ("<ANSWER>:", ""),
        ("  no tag, so nothing changes \n", "  no tag, so nothing changes \n"),
        ("<ANSWER> 4 ##begin_quote##", "<ANSWER> 4 ##begin_quote##"),
        ("", ""),
    ],
)
def test_the_answer_follows_the_last_tag(response: str, answer: str) -> None:
    assert extract_answer(response) == answer


def test_quotes_are_closed() -> None:
    response = "##begin_quote##a\nb##end_quote## x ##end_quote## ##begin_quote##c##end_quote## ##begin_quote##d"
    assert extract_quotes(response) == ("a\nb", "c")


@given(plain)
def test_untagged_text_is_untouched(text: str) -> None:
    assert extract_answer(text) == text and extract_quotes(text) == ()


@given(st.lists(plain, min_size=1, max_size=3), plain)
def test_what_is_composed_is_extracted(quotes: list[str], answer: str) -> None:
    response = compose(quotes, answer)
    assert extract_quotes(response) == tuple(quotes) and extract_answer(response) == answer.strip()


@pytest.mark.parametrize("tag", TAGS)
def test_each_tag_is_found(tag: str) -> None:
    assert has_tag(f"a{tag}b") and not has_tag(f"a{tag[:-1]} b")
