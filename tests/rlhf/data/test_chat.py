from __future__ import annotations

import pytest

from rlhf.data.chat import ChatFormat, transcript
from rlhf.data.hh import messages
from rlhf.data.template import Unusable
from rlhf.errors import UserError
from rlhf.records import Message

TURNS = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "Sky?"))
TEMPLATE = (
    "{% for m in messages %}{% if loop.previtem and loop.previtem.role == m.role %}{{ raise_exception('roles') }}"
    "{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def prompt_of(turns: object, tokenizer: object) -> str:
    return ChatFormat(tokenizer).prompt(turns, {}).prompt  # type: ignore[arg-type]


def answer_to(turns: object, answer: object, tokenizer: object) -> str:
    return ChatFormat(tokenizer).exchange(turns, answer, {}).answer  # type: ignore[arg-type]


def test_messages_go_through_the_chat_template(tokenizer) -> None:
    tokenizer.chat_template = TEMPLATE
    assert prompt_of(TURNS, tokenizer) == "[system]Be brief.[user]Hi[assistant]Hello![user]Sky?[assistant]"
    assert answer_to(TURNS, "Blue.", tokenizer) == answer_to(TURNS, Message("assistant", "Blue."), tokenizer) == "Blue."


def test_a_template_error_is_reported(tokenizer) -> None:
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(Unusable, match="the chat template refuses the turns: roles"):
        prompt_of((TURNS[1], TURNS[1]), tokenizer)


def test_text_stays_as_it_is_with_and_without_a_template(tokenizer) -> None:
    assert prompt_of(" The sky is", tokenizer) == " The sky is"
    tokenizer.chat_template = TEMPLATE
    assert prompt_of(" The sky is", tokenizer) == " The sky is"
    assert answer_to(" The sky is", " blue", tokenizer) == " blue"


def test_without_a_template_messages_become_a_transcript(tokenizer) -> None:
    expected = "\n\nSystem: Be brief.\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sky?\n\nAssistant:"
    assert prompt_of(TURNS, tokenizer) == transcript(TURNS) == expected
    assert answer_to(TURNS, "Blue.", tokenizer) == " Blue."


def test_a_transcript_and_its_reply_come_back_as_they_were(tokenizer) -> None:
    text = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sky?\n\nAssistant: Blue."
    *prompt, reply = (Message(**turn) for turn in messages(text))
    assert prompt_of(tuple(prompt), tokenizer) + answer_to(tuple(prompt), reply, tokenizer) == text


def test_an_assistants_last_turn_is_continued(tokenizer) -> None:
    turns = (Message("user", "Sky?"), Message("assistant", "It is"))
    assert prompt_of(turns, tokenizer) == transcript(turns) == "\n\nHuman: Sky?\n\nAssistant: It is"
    assert answer_to(turns, " blue.", tokenizer) == " blue."
    tokenizer.chat_template = TEMPLATE
    assert prompt_of(turns, tokenizer) == "[user]Sky?[assistant]It is"
    assert answer_to(turns, Message("assistant", " blue."), tokenizer) == " blue."


NO_SPACE = "no white space between prompt and answer"


@pytest.mark.parametrize(
    ("prompt", "answer", "is_remarked"),
    [
        ("What does a night cost?", "The Amber Inn costs 65.", True),
        ("What does a night cost?", Message("assistant", "The Amber Inn costs 65."), True),
        ("Answer:", "yes", True),
        ("(a note)", "é", True),
        ("What does a night cost?", " The Amber Inn costs 65.", False),
        ("What does a night cost?\n", "The Amber Inn costs 65.", False),
        ("What does a night cost?", "\nThe Amber Inn costs 65.", False),
        ("Compute 1+1=", "2", False),
        ('He said "', "yes", False),
        ("f(", "x)", False),
        ("天空是什么颜色？", "蓝色", False),
        ("天空是", "blue", False),
        ("", "Once upon a time", False),
        ((Message("user", "What does a night cost?"),), "The Amber Inn", False),
    ],
)
def test_an_answer_that_follows_its_prompt_without_a_space_is_counted(tokenizer, prompt, answer, is_remarked) -> None:
    remarks = ChatFormat(tokenizer).exchange(prompt, answer, {}).remarks
    assert any(remark.startswith(NO_SPACE) for remark in remarks) is is_remarked


@pytest.mark.parametrize(
    ("template", "is_remarked"),
    [
        ("{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>{% endfor %}", True),
        ("{% for m in messages %}{{ ('[INST]' if m.role == 'user' else ' ') + m.content }}{% endfor %}", False),
        (TEMPLATE, False),
    ],
)
def test_a_template_without_a_generation_prompt_is_reported(tokenizer, template: str, is_remarked: bool) -> None:
    tokenizer.chat_template = template
    chat = ChatFormat(tokenizer)
    for rendered in (chat.exchange(TURNS[1:2], "Blue.", {}), chat.prompt(TURNS[1:2], {})):
        assert any("ignores add_generation_prompt" in remark for remark in rendered.remarks) is is_remarked
    opened = (TURNS[1], Message("assistant", "It is"))
    assert not any("add_generation_prompt" in remark for remark in chat.prompt(opened, {}).remarks)


@pytest.mark.parametrize("template", ["{% for %}", "{% if messages %}", "{{ messages | unknown_filter }}", "{{"])
def test_a_template_that_is_no_jinja_is_refused(tokenizer, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="the chat template is not valid Jinja: line 1") as caught:
        ChatFormat(tokenizer)
    assert "correct the template" in caught.value.fix


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ undefined.of }}", "{{ messages[0].content + 1 }}"])
def test_an_error_inside_a_template_is_not_called_a_refusal(tokenizer, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(Unusable, match="the chat template fails: [A-Z][A-Za-z]*Error: "):
        prompt_of(TURNS, tokenizer)
