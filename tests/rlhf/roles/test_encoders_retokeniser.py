"""The tokens that a reward model with a different tokenizer reads, compared with explicit encodings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from rlhf.data.chat import ChatFormat
from rlhf.errors import UserError
from rlhf.models.scratch import train_tokenizer
from rlhf.records import Message
from rlhf.roles.encoders import Retokeniser, same_tokens
from rlhf.roles.text import BlockReader
from rlhf.types import FinishReason, ModelFacts, Prompt, Rollout, RolloutBlock

TEMPLATE = (
    "{% for m in messages %}[{{ 'me' if m.role == 'assistant' else m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[me]{% endif %}"
)
WITH_I = TEMPLATE.replace("'me'", "'I'").replace("[me]", "[I]")
TURNS = (Message("user", "where is the inn?"),)
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def tokenizer(
    *texts: str, size: int = 300, begin: bool = False, template: str | None = None
) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the texts; <pad> 0 and <eos> 1, and <s> where it begins."""
    made = train_tokenizer(texts, size)
    if begin:
        made.add_special_tokens({"bos_token": "<s>"})
        pair = ("<s>", made.bos_token_id)
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[pair])
    made.chat_template = template
    return made


POLICY = tokenizer("the inn is open " * 5)
OWN = tokenizer("where could it be then " * 5, size=290, begin=True)


def rollout(prompt: Prompt, tokens: Sequence[int], reason: FinishReason) -> Rollout:
    return Rollout(
        prompt=prompt,
        tokens=np.array(tokens, dtype=np.int32),
        logprobs=np.zeros(len(tokens), dtype=np.float32),
        mask=np.ones(len(tokens), dtype=bool),
        weight_version=0,
        finish_reason=reason,
        seed=0,
    )


def rollouts(prompt: Prompt, tokens: Sequence[int], reason: FinishReason) -> RolloutBlock:
    return RolloutBlock.pack([rollout(prompt, tokens, reason)])


def block(policy: PreTrainedTokenizerFast, *samples: tuple[Prompt, str, FinishReason]) -> RolloutBlock:
    """Rollouts of these responses; a finished one ends with the policy's end token."""
    return RolloutBlock.pack(
        [
            rollout(prompt, policy.encode(text) + ([policy.eos_token_id] if reason is STOP else []), reason)
            for prompt, text, reason in samples
        ]
    )


def facts(context: int = 1000, rows: int = 1000) -> ModelFacts:
    return ModelFacts(context=context, embedding_rows=rows, end_tokens=())


def are_same(one: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast, prompts: Sequence[Prompt]) -> bool:
    return same_tokens(ChatFormat(one), ChatFormat(other), prompts)


def retokenised(
    own: PreTrainedTokenizerFast,
    samples: Sequence[tuple[Prompt, str, FinishReason]],
    policy: PreTrainedTokenizerFast = POLICY,
    context: int = 1000,
) -> tuple[list[list[int]], list[list[int]], Retokeniser]:
    """Prompts and responses as the reward model reads them."""
    reader = BlockReader(ChatFormat(policy), [prompt for prompt, _, _ in samples])
    made = Retokeniser(ChatFormat(own), facts(context), reader)
    sequences = made(block(policy, *samples))
    count = range(len(sequences))
    return [sequences.prompt(i).tolist() for i in count], [sequences.response(i).tolist() for i in count], made


def asked(text: str, id: int = 7, turns: tuple[Message, ...] = ()) -> Prompt:
    return Prompt(id=id, tokens=tuple(POLICY.encode(text)), text=text, turns=turns)


def test_text_is_encoded_by_the_models_own_tokenizer_between_its_own_begin_and_end():
    samples = [(asked("where is it?", 3), " it is naïve ☃", STOP), (asked("a", 5), "cut off", LENGTH)]
    prompts, responses, made = retokenised(OWN, samples)
    assert prompts == [OWN.encode("where is it?"), OWN.encode("a")]
    assert prompts[0][0] == OWN.bos_token_id and OWN.bos_token_id not in prompts[0][1:]
    own = [OWN.encode(text, add_special_tokens=False) for text in (" it is naïve ☃", "cut off")]
    assert responses == [[*own[0], OWN.eos_token_id], own[1]], "only what ended by itself ends"
    assert own[0] != POLICY.encode(" it is naïve ☃")
    assert (made.limit.seen, made.limit.cut) == (2, 0)


def test_a_prompt_without_its_text_is_decoded():
    prompt = Prompt(id=0, tokens=tuple(POLICY.encode("where is it?")))
    assert retokenised(OWN, [(prompt, "x", STOP)])[0] == [OWN.encode("where is it?")]


@pytest.mark.parametrize(
    ("policy_template", "own_template", "response", "expected"),
    [
        (None, None, " here", ("\n\nHuman: where is the inn?\n\nAssistant:", " here")),
        (None, TEMPLATE, " here", ("[user]where is the inn?[me]", "here")),
        (TEMPLATE, None, "here", ("\n\nHuman: where is the inn?\n\nAssistant:", " here")),
        (
            TEMPLATE,
            WITH_I,
            " here",
            ("[user]where is the inn?[I]", " here"),
        ),
    ],
)
def test_messages_go_through_the_models_own_template(policy_template, own_template, response, expected):
    policy = tokenizer("the inn is open " * 5, template=policy_template)
    own = tokenizer("where could it be " * 5, template=own_template)
    samples = [(asked("unused", turns=TURNS), response, STOP)]
    prompts, responses, _ = retokenised(own, samples, policy)
    assert (own.decode(prompts[0]), own.decode(responses[0][:-1])) == expected


def test_what_is_too_long_is_cut_at_its_beginning_and_counted(capsys):
    samples = [
        (asked("abcdefghij"), "wxyz", STOP),
        (asked("ab", 8), "xy", STOP),
    ]  # one token a byte: 1 + 10 + 4 + 1 = 16
    own = tokenizer(size=258, begin=True)
    for context, prompt, response in (
        (16, "<s>abcdefghij", "wxyz<eos>"),
        (15, "<s>bcdefghij", "wxyz<eos>"),
        (6, "<s>", "wxyz<eos>"),
        (4, "<s>", "yz<eos>"),
    ):
        prompts, responses, made = retokenised(own, samples, context=context)
        assert (own.decode(prompts[0]), own.decode(responses[0])) == (prompt, response)
        assert len(prompts[0]) + len(responses[0]) == context
    assert (made.limit.seen, made.limit.cut) == (2, 2)
    assert "2 of 2 texts so far were truncated at the beginning" in capsys.readouterr().out


def test_same_tokenizers_need_no_text():
    twin = tokenizer("the inn is open " * 5)
    assert are_same(POLICY, twin, [asked("a"), asked("a", turns=TURNS)])


def test_padding_makes_no_difference():
    padded = tokenizer("the inn is open " * 5)
    padded.add_special_tokens({"pad_token": "<|other-pad|>"})
    unpadded = tokenizer("the inn is open " * 5)
    assert are_same(unpadded, padded, [asked("a")])


def test_other_vocabularies_specials_rules_and_templates_need_text():
    prompts = [asked("a", turns=TURNS)]
    ends = tokenizer("the inn is open " * 5)
    ends.eos_token = ends.convert_ids_to_tokens(40)
    swapped = tokenizer("the inn is open " * 5)
    swapped.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 1)]
    )
    templated = tokenizer("the inn is open " * 5, template=TEMPLATE)
    for other in (OWN, tokenizer("the inn is open " * 5, size=262), ends, swapped, templated):
        assert not are_same(POLICY, other, prompts)
    assert are_same(POLICY, templated, [asked("a")]), "no prompt goes through a template"


WITH_TOOLS = "{% if tools %}[tools]{{ tools[0].name }}{% endif %}" + TEMPLATE
OPENS = TEMPLATE.replace("%}[me]{", "%}[me]<think>{")


def test_the_rewards_template_is_given_tools_and_fields():
    tools = [{"name": "look_up"}]
    turns = (Message("user", "a", {"name": "Ann"}),)
    own = tokenizer(size=258, template=WITH_TOOLS.replace("{{ m.content }}", "{{ m.name }}: {{ m.content }}"))
    prompt = Prompt(id=0, tokens=(2,), text="unused", turns=turns, variables={"tools": tools})
    [ids], [response], _ = retokenised(own, [(prompt, "b", STOP)])
    assert own.decode([*ids, *response]) == "[tools]look_up[user]Ann: a[me]: b<eos>"


def test_a_thought_that_the_policys_prompt_opens_is_part_of_its_answer():
    policy, own = tokenizer("the inn", template=OPENS), tokenizer(size=258, template=TEMPLATE)
    prompt = asked("unused", turns=TURNS)
    [ids], [response], _ = retokenised(own, [(prompt, "Hm.</think>Here", STOP)], policy)
    assert own.decode([*ids, *response]) == "[user]where is the inn?[me]<think>Hm.</think>Here<eos>"


@pytest.mark.parametrize("text", ["", "a<eos>b", "x <|im_end|>"])
def test_whatever_the_policy_says_is_read(text: str):
    """An empty answer, and one that contains the text of the reward model's end token, which does not end it."""
    own = tokenizer(size=258, template=TEMPLATE)
    policy = tokenizer("the inn is open " * 5, template=TEMPLATE)
    ordinary = policy.encode(text, split_special_tokens=True)
    reader = BlockReader(ChatFormat(policy), [asked("unused", turns=TURNS)])
    made = Retokeniser(ChatFormat(own), facts(), reader)
    sequences = made(rollouts(asked("unused", turns=TURNS), [*ordinary, policy.eos_token_id], STOP))
    assert sequences.response(0).tolist() == [*own.encode(text, split_special_tokens=True), own.eos_token_id]


def test_an_end_token_that_is_not_special_is_removed_too():
    policy = tokenizer("the inn is open " * 5)
    policy.add_tokens(["<|eot|>"])
    end = policy.convert_tokens_to_ids("<|eot|>")
    reader = BlockReader(ChatFormat(policy, [end]), [asked("a")])
    assert reader(rollouts(asked("a"), [*policy.encode("open"), end], STOP)).responses == ["open"]


def test_a_prompt_that_the_rewards_template_refuses_is_refused_before_training():
    own = tokenizer(
        size=258, template="{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    reader = BlockReader(ChatFormat(POLICY), [asked("Be brief", turns=(Message("system", "Be brief"), *TURNS))])
    with pytest.raises(UserError, match=r"reward model judge cannot read the prompt 'Be brief'(.|\n)*no system"):
        Retokeniser(ChatFormat(own), facts(), reader).check("judge")


def test_a_token_beyond_the_rewards_embedding_is_refused_before_training():
    own = tokenizer(size=258)
    own.add_tokens(["<think>"])
    reader = BlockReader(ChatFormat(POLICY), [asked("<think>")])
    Retokeniser(ChatFormat(own), facts(rows=259), reader).check("judge")
    with pytest.raises(UserError, match=r"reward model judge: token '<think>' has id 258, and its embedding has 258"):
        Retokeniser(ChatFormat(own), facts(rows=258), reader).check("judge")
