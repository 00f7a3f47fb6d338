from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.config.schema import RetrievalConfig
from rlhf.errors import UserError
from rlhf.retrieval.passages import Passage
from rlhf.retrieval.template import PromptTemplate, require_template

PASSAGES = [Passage(id="a", text="It is 4.", title="Sums", document="a"), Passage(id="b", text="No.", document="b")]
BUILT_IN = """[1] Sums: It is 4.
[2] No.
Quote the words that answer the question between ##begin_quote## and ##end_quote##, then write <ANSWER>: and the answer.
Question: What is 2 + 2?
Answer:"""


def test_the_built_in_prompt_is_what_earlier_versions_rendered() -> None:
    """Models are trained on these very characters: a change here makes datasets and indices unusable."""
    template = PromptTemplate.of(RetrievalConfig())
    assert template.prompt("What is 2 + 2?", PASSAGES) == BUILT_IN
    assert template.digest == "fd5e3a4f5523"


def test_a_prompt_may_be_one_user_message() -> None:
    template = PromptTemplate.of(RetrievalConfig(messages=True))
    assert template.prompt("What is 2 + 2?", PASSAGES) == [{"role": "user", "content": BUILT_IN}]
    assert template.digest != PromptTemplate.of(RetrievalConfig()).digest


def own(tmp_path: Path, text: str) -> PromptTemplate:
    (tmp_path / "t.jinja").write_text(text, encoding="utf-8")
    return PromptTemplate.of(RetrievalConfig(template=str(tmp_path / "t.jinja")))


def test_an_own_template(tmp_path: Path) -> None:
    template = own(tmp_path, "{{ question }}{% for p in passages %} {{ p.title }}|{{ p.text }}{% endfor %}")
    assert template.text("Q?", PASSAGES) == "Q? Sums|It is 4. |No."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ question }}", "leaves out the passages' text"),
        ("{% for p in passages %}{{ p.text }}{% endfor %}", "leaves out the question"),
        ("{{ question", "cannot be rendered"),
        ("{{ query }}", "'query' is undefined"),
        ("{{ question.__class__.__mro__ }}", "cannot be rendered"),
        ("{{ 1 / 0 }}", "cannot be rendered.*division by zero"),
        ("{% for i in range(10**9) %}{% endfor %}", "cannot be rendered"),
    ],
)
def test_templates_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        own(tmp_path, text)


def test_a_template_that_fails_on_some_passages_only(tmp_path: Path) -> None:
    template = own(tmp_path, "{{ question }}{{ passages[0].text }}{{ 1 / (2 - passages | length) }}")
    with pytest.raises(UserError, match="retrieval.template cannot be rendered"):
        template.text("Q?", PASSAGES)


def test_a_missing_template() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        PromptTemplate.of(RetrievalConfig(template="missing.jinja"))


def test_another_template_is_refused_with_both_digests(tmp_path: Path) -> None:
    made = own(tmp_path, "{{ question }}{% for p in passages %}{{ p.text }}{% endfor %}")
    recipe = own(tmp_path, "{{ question }} {% for p in passages %}{{ p.text }}{% endfor %}")
    require_template(made.digest, made, "the index 'x'")
    with pytest.raises(UserError, match=f"the index 'x' .* {made.digest}, and the recipe's is {recipe.digest}"):
        require_template(made.digest, recipe, "the index 'x'")
