"""Retrieval metrics against examples that are worked by hand, as in the documentation of RAGAS."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf import http_retries
from rlhf.evaluation import retrieval_metrics as metrics
from rlhf.evaluation.chat_endpoint import ChatEndpoint
from rlhf.evaluation.retrieval_metrics import RetrievalItem
from tests.rlhf.evaluation.judge_service import Rule, config_of, judging, tagged

ITEM = RetrievalItem(
    question="Where and when was Einstein born?",
    answer="Einstein was born in Germany on 20th March 1879.",
    contexts=("Albert Einstein (born 14 March 1879) was a German-born physicist.", "Ulm is in Germany."),
    reference="Einstein was born in Germany on 14th March 1879.",
)
VECTORS = {"here": [1.0, 0.0], "near": [1.0, 1.0], "off": [0.0, 2.0]}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_retries, "FIRST_WAIT", 0.01)


def measured(
    name: str, rule: Rule, items: list[RetrievalItem], vectors: dict[str, list[float]] | None = None
) -> list[float]:
    with judging(rule, lambda text: (vectors or VECTORS)[text]) as service:
        return metrics.RETRIEVAL_METRICS[name](ChatEndpoint(config_of(service)), items).tolist()


def statements(*verdicts: bool) -> dict[str, object]:
    return {"statements": [{"statement": f"s{i}", "supported": verdict} for i, verdict in enumerate(verdicts)]}


def test_faithfulness_is_the_share_of_supported_statements() -> None:
    # "Einstein was born in Germany": yes. "Einstein was born on 20th March 1879": no. 1 of 2.
    assert measured("faithfulness", lambda prompt: statements(True, False), [ITEM]) == [0.5]


def test_context_recall_reads_the_reference() -> None:
    def rule(prompt: str) -> object:
        assert tagged(prompt, "correct_answer") == ITEM.reference
        return statements(True, True, False, True)

    assert measured("context_recall", rule, [ITEM]) == [0.75]


@pytest.mark.parametrize(
    ("verdicts", "value"),
    [
        ([True, False], 1.0),
        ([False, True], 0.5),
        ([True, False, True], (1 + 2 / 3) / 2),
        ([False, False], 0.0),
    ],
)
def test_context_precision_rewards_useful_passages_at_the_top(verdicts: list[bool], value: float) -> None:
    contexts = tuple(f"passage {i}" for i in range(len(verdicts)))
    item = RetrievalItem(question="q", answer="a", contexts=contexts, reference="r")

    def rule(prompt: str) -> object:
        return {"useful": verdicts[int(tagged(prompt, "passage").split()[1])]}

    assert measured("context_precision", rule, [item]) == pytest.approx([value])


def test_answer_relevancy_is_a_mean_cosine_and_zero_for_an_evasive_answer() -> None:
    def rule(prompt: str) -> object:
        return {"questions": ["here", "near", "off"], "evasive": tagged(prompt, "answer") == "I do not know"}

    items = [RetrievalItem(question="here", answer=answer, contexts=()) for answer in ("yes", "I do not know")]
    found = measured("answer_relevancy", rule, items)
    assert found == pytest.approx([(1 + math.sqrt(0.5) + 0) / 3, 0.0])


def test_answer_correctness_weighs_facts_and_similarity() -> None:
    # One correct, one wrong, one missing: F1 = 1/(1 + 1) = 0.5; the cosine of (1, 0) and (1, 1) is √½.
    item = RetrievalItem(question="q", answer="here", contexts=(), reference="near")
    rule = lambda prompt: {"correct": ["a"], "wrong": ["b"], "missing": ["c"]}  # noqa: E731
    assert measured("answer_correctness", rule, [item]) == pytest.approx([0.75 * 0.5 + 0.25 * math.sqrt(0.5)])


def test_what_the_judge_cannot_decide_is_missing_not_zero() -> None:
    items = [ITEM, RetrievalItem(question="q", answer="broken", contexts=("c",), reference="r")]

    def rule(prompt: str) -> object:
        return "no JSON" if "broken" in prompt else statements(True)

    found = measured("faithfulness", rule, items)
    assert found[0] == 1.0
    assert math.isnan(found[1])
    assert math.isnan(metrics.fraction_of([]))
    assert math.isnan(metrics.average_precision([]))
    assert math.isnan(metrics.facts_f1(0, 0, 0))
    assert math.isnan(metrics.cosine(np.zeros(2), np.ones(2)))


def test_one_failed_passage_leaves_the_precision_unknown() -> None:
    def rule(prompt: str) -> object:
        return 400 if "Ulm" in tagged(prompt, "passage") else {"useful": True}

    assert math.isnan(measured("context_precision", rule, [ITEM])[0])
