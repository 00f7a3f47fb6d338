"""The tokens that an encoder reads, compared with its tokenizer's pairs; and truncation at a length limit."""

from __future__ import annotations

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from rlhf.data.chat import ChatFormat
from rlhf.errors import UserError
from rlhf.models.scratch import train_tokenizer
from rlhf.records import Message
from rlhf.roles.encoders import BlockTruncator, LengthLimit, TextPairs, pair_frame
from rlhf.roles.text import BlockReader
from rlhf.types import FinishReason, Prompt
from tests.rlhf.roles.test_encoders_retokeniser import POLICY, asked, block
from tests.rlhf.tiny_classifiers import pair_tokenizer

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
ONE = (Message("user", "where is the inn?"),)
MORE = (*ONE, Message("assistant", "here"), Message("user", "open?"))
DIALOGUE = "\n\nHuman: where is the inn?\n\nAssistant: here\n\nHuman: open?\n\nAssistant:"
SAMPLES = [
    (asked("where is it?", 0), " it is naïve ☃", STOP),
    (asked("\n\nHuman: where is the inn?\n\nAssistant:", 1, ONE), " cut off", LENGTH),
    (asked(DIALOGUE, 2, MORE), "", STOP),
]
TEXTS = [
    ("where is it?", "it is naïve ☃"),
    ("where is the inn?", "cut off"),
    ("Human: where is the inn?\n\nAssistant: here\n\nHuman: open?", ""),
]


def pairs(
    own: PreTrainedTokenizerFast, limit: int, samples: list[tuple[Prompt, str, FinishReason]]
) -> tuple[TextPairs, list]:
    made = TextPairs(own, LengthLimit(limit), BlockReader(ChatFormat(POLICY), [prompt for prompt, _, _ in samples]))
    sequences = made(block(POLICY, *samples))
    return made, [(sequences.prompt(i).tolist(), sequences.response(i).tolist()) for i in range(len(samples))]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_prompt_and_response_are_the_tokenizers_own_pair(kind: str) -> None:
    own = pair_tokenizer(kind)
    made, found = pairs(own, 500, SAMPLES)
    for (prompt, response), (question, answer) in zip(found, TEXTS, strict=True):
        expected = own(
            [question], [answer], return_token_type_ids=True
        )  # alone, an empty answer would be no second text
        assert [prompt + response] == expected["input_ids"]
        if kind == "bert":
            assert [[0] * len(prompt) + [1] * len(response)] == expected["token_type_ids"]
    assert made.frame.has_segments is (kind == "bert")
    assert (made.limit.seen, made.limit.cut) == (3, 0)


@pytest.mark.parametrize("limit", [30, 12])
def test_a_pair_that_is_too_long_keeps_its_special_tokens_and_the_answers_end(
    limit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    own = pair_tokenizer("roberta")
    made, [(prompt, response)] = pairs(own, limit, [(asked("where is the inn? " * 9), "it is open. " * 2, STOP)])
    texts = ("where is the inn? " * 9).strip(), ("it is open. " * 2).strip()
    question, answer = (own(text, add_special_tokens=False)["input_ids"] for text in texts)
    room = limit - 4
    kept = answer[-room:]
    assert prompt == [1, *question[len(question) - (room - len(kept)) :], 2, 2] and response == [*kept, 2]
    assert len(prompt) + len(response) == limit
    assert (made.limit.seen, made.limit.cut) == (1, 1)
    assert "1 of 1 texts so far were truncated at the beginning" in capsys.readouterr().out


def test_a_tokenizer_that_hides_where_its_texts_begin_is_refused() -> None:
    reverse = train_tokenizer([], 258)
    reverse.model_input_names = ["input_ids", "token_type_ids"]
    reverse.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$B <eos> $A:1 <eos>:1", special_tokens=[("<eos>", 1)]
    )
    with pytest.raises(UserError, match="cannot encode a pair of texts"):
        pair_frame(reverse)


def test_blocks_in_the_policys_tokens_are_cut_too() -> None:
    samples = [(asked("where is it? and then where?"), " it is", STOP), (asked("a", 8), " b", STOP)]
    whole = block(POLICY, *samples).sequences
    made = BlockTruncator(LengthLimit(10, bos_token=int(whole.prompt(0)[0])))
    cut = made(block(POLICY, *samples))
    response = whole.response(0).tolist()
    expected = [whole.prompt(0)[0], *whole.prompt(0)[len(whole.prompt(0)) - (9 - len(response)) :]]
    assert cut.prompt(0).tolist() == expected and cut.response(0).tolist() == response
    assert len(expected) + len(response) == 10
    assert (cut.prompt(1).tolist(), cut.response(1).tolist()) == (whole.prompt(1).tolist(), whole.response(1).tolist())
    assert (made.limit.seen, made.limit.cut) == (2, 1)
