from __future__ import annotations

import pytest
from jinja2 import TemplateError

from rlhf.data.chat import prepare_tokenizer, render_prompt, render_response, transcript
from rlhf.data.hh import messages
from rlhf.data.records import Message
from rlhf.errors import UserError

TURNS = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "Sky?"))
TEMPLATE = (
    "{% for m in messages %}{% if loop.previtem and loop.previtem.role == m.role %}{{ raise_exception('roles') }}"
    "{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_messages_go_through_the_chat_template(tokenizer) -> None:
    tokenizer.chat_template = TEMPLATE
    assert render_prompt(TURNS, tokenizer) == "[system]Be brief.[user]Hi[assistant]Hello![user]Sky?[assistant]"
    assert render_response("Blue.", TURNS, tokenizer) == "Blue."


def test_a_template_that_refuses_the_turns_says_so(tokenizer) -> None:
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(TemplateError, match="roles"):
        render_prompt((TURNS[1], TURNS[1]), tokenizer)


def test_text_stays_as_it_is_with_and_without_a_template(tokenizer) -> None:
    assert render_prompt(" The sky is", tokenizer) == " The sky is"
    tokenizer.chat_template = TEMPLATE
    assert render_prompt(" The sky is", tokenizer) == " The sky is"
    assert render_response(" blue", " The sky is", tokenizer) == " blue"


def test_without_a_template_messages_become_a_transcript(tokenizer) -> None:
    expected = "\n\nSystem: Be brief.\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sky?\n\nAssistant:"
    assert render_prompt(TURNS, tokenizer) == transcript(TURNS) == expected
    assert render_response("Blue.", TURNS, tokenizer) == " Blue."


def test_a_transcript_and_its_reply_come_back_as_they_were(tokenizer) -> None:
    text = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sky?\n\nAssistant: Blue."
    *prompt, reply = (Message(**turn) for turn in messages(text))
    assert render_prompt(tuple(prompt), tokenizer) + render_response(reply.content, tuple(prompt), tokenizer) == text


def test_a_tokenizer_without_an_end_token_is_refused(make_tokenizer) -> None:
    with pytest.raises(UserError, match="no end token(.|\n)*eos_token"):
        prepare_tokenizer(make_tokenizer("<pad>", pad_token="<pad>"))


@pytest.mark.parametrize(
    ("specials", "declared", "pad"),
    [
        (("<end>", "<mine>"), {"pad_token": "<mine>"}, "<mine>"),  # a declared one is kept
        (("<end>", "<|padding|>", "<unk>"), {"unk_token": "<unk>"}, "<|padding|>"),  # a known one that is not declared
        (("<end>", "<unk>"), {"unk_token": "<unk>", "pad_token": "<end>"}, "<unk>"),  # padding must not be the end
        (("<end>",), {"unk_token": "<end>"}, "<|pad|>"),  # nothing fits: a new one
    ],
)
def test_the_padding_token_is_never_the_end_token(
    make_tokenizer, specials: tuple[str, ...], declared: dict[str, str], pad: str
) -> None:
    tokenizer = make_tokenizer(*specials, eos_token="<end>", **declared)
    vocabulary = len(tokenizer)
    prepare_tokenizer(tokenizer)
    assert tokenizer.pad_token == pad
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == 0
    assert len(tokenizer) == vocabulary + (pad not in specials)
