"""The comparison of methods: its data, the simulated judge and people, and the page, on planted answers."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from examples.travel.answers import CAREFUL, FLAWLESS, HASTY, Habits, compose
from examples.travel.compare import judge
from examples.travel.compare.__main__ import JudgeService, evaluate, join_seeds, main
from examples.travel.compare.arms import ARMS, BASE, _answer_row, retrieve_all
from examples.travel.compare.data import Sizes, ask, make_office, write_data, write_quoted_comparisons
from examples.travel.compare.page import Circumstances, write_page
from examples.travel.compare.people import OVERLAP, PAIRS, choose_pairs
from examples.travel.guideline import fact, read_prompt
from rlhf.arms.compare import Compared
from rlhf.evaluation.agreement_with_people import Verdict
from rlhf.evaluation.chat_endpoint import ChatEndpoint, ServiceConfig
from rlhf.evaluation.judge import Exhibit, judge_pairs, judge_scores
from rlhf.evaluation.retrieval_metrics import RetrievalItem, context_precision, context_recall, faithfulness
from rlhf.retrieval.passages import Passage
from rlhf.storage.jsonl import read_lines, to_line

SIZES = Sizes(corpus=50, repeats=20, comparisons=40, items=30, steps=1)
CARD = "Bresk: Amber Inn, hill quarter, 65 crowns, 10 to 21."
PROMPT = f"{CARD}\nTraveller: What do I pay?\nAssistant:"
OTHER = "Bresk: Iris Inn, old quarter, 90 crowns, 9 to 20."
LONG_AND_WRONG = replace(FLAWLESS, mistake=0.9, tip=0.0, opening=0.0, padding=1.0, repeat=1.0)
SHORT_AND_RIGHT = replace(FLAWLESS, detail=0.0, tip=0.0)
WRITERS: dict[str, Habits] = {
    "base": HASTY,
    "base_passages": SHORT_AND_RIGHT,
    "sft": LONG_AND_WRONG,
    "sft_passages": CAREFUL,
    "dpo": LONG_AND_WRONG,
    "raft": CAREFUL,
    "raft_ppo": FLAWLESS,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seed's data, and answers of writers in place of models."""
    root = tmp_path_factory.mktemp("compare")
    write_data(root / "seed-4" / "data", 4, SIZES)
    items = read_lines(root / "seed-4" / "data" / "items.jsonl")
    (root / "seed-4" / "answers").mkdir()
    for arm in ARMS:
        rng, habits = random.Random(arm.name), WRITERS.get(arm.name, CAREFUL)
        rows = []
        for item in items:
            text = compose(read_prompt(item["prompt"]), habits, rng)
            row = {"response": f" ##begin_quote##x##end_quote## <ANSWER>:{text}", "sampling": {"temperature": 0.7}}
            shown = [item["prompt"].splitlines()[0], OTHER] if arm.has_passages else []
            rows.append(_answer_row(item, [Passage(id=t, text=t, document=t) for t in shown], row))
        (root / "seed-4" / "answers" / f"{arm.name}.jsonl").write_text("".join(map(to_line, rows)))
    return root


def test_new_places_are_in_no_training_data(folder: Path) -> None:
    office, data = make_office(4, SIZES.items), folder / "seed-4" / "data"
    assert (len(office.known), len(office.new), len(office.items)) == (32, 16, 30)
    items = read_lines(data / "items.jsonl")
    assert sorted(item["label"] for item in items) == ["known"] * 15 + ["new"] * 15
    training = "".join((data / f"{name}.jsonl").read_text() for name in ("demonstrations", "comparisons", "questions"))
    training += (data / "known_passages.jsonl").read_text()
    assert [place.name for place in office.new if place.name in training] == []
    asked = {row["prompt"] for row in read_lines(data / "demonstrations.jsonl")}
    assert {ask(item["question"]) for item in items} & asked == set() and len(asked) == SIZES.demonstrations
    assert len(read_lines(data / "passages.jsonl")) == 48
    assert all(fact([item["prompt"]], [item["reference"]]) == [1.0] for item in items)


def test_equal_arguments_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    write_data(tmp_path, 4, SIZES)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (folder / "seed-4" / "data" / file.name).read_bytes(), file


def test_the_card_of_a_new_place_is_retrieved(folder: Path) -> None:
    items = [item for item in read_lines(folder / "seed-4" / "data" / "items.jsonl") if item["label"] == "new"]
    found = retrieve_all(folder / "seed-4", [item["question"] for item in items])
    for item, passages in zip(items, found, strict=True):
        name = read_prompt(item["prompt"]).name
        assert [passage.text.startswith(f"The {name}: ") for passage in passages] == [True, False, False]


def test_comparisons_are_the_same_with_passages(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    row = {"prompt": "cards and Q?", "question": "Q?", "quotes": ["the card"]}
    (tmp_path / "dataset" / "train.jsonl").write_text(to_line(row))
    pair = {"prompt": "Q?", "chosen": " Yes.", "rejected": " No.", "question": "Q?"}
    (tmp_path / "comparisons.jsonl").write_text(to_line(pair))
    write_quoted_comparisons(tmp_path)
    quote = " ##begin_quote##the card##end_quote## <ANSWER>: "
    assert read_lines(tmp_path / "quoted_comparisons.jsonl") == [
        {"prompt": "cards and Q?", "chosen": f"{quote}Yes.", "rejected": f"{quote}No."}
    ]


def test_every_answer_is_the_text_after_the_answer_tag_or_all_of_it() -> None:
    item, sampling = {"prompt": PROMPT, "reference": "r"}, {"temperature": 0.7}
    quoted = {"response": f" ##begin_quote##{CARD}##end_quote## <ANSWER>: 65 crowns. ", "sampling": sampling}
    found = _answer_row(item, [Passage(id="a", text=CARD, document="a")], quoted)
    assert found == {"prompt": PROMPT, "response": "65 crowns.", "sampling": sampling, "contexts": [CARD]}
    plain = _answer_row(item, (), {"response": " 65 crowns.", "sampling": sampling})
    assert plain == {"prompt": PROMPT, "response": "65 crowns.", "sampling": sampling}


def test_the_judge_counts_words_and_courtesy_and_no_truth() -> None:
    # A fact 2, a greeting 1, 7 words 7/8; the wrong price counts as much as the right one.
    assert judge.points("Gladly! The Amber Inn costs 65 crowns.") == 2 + 1 + 7 / 8
    assert judge.points("Gladly! The Amber Inn costs 99 crowns.") == 2 + 1 + 7 / 8
    assert judge.points("It is not far from here.") == 6 / 8


def test_the_judge_answers_as_a_service_with_its_flaws() -> None:
    short, wrong = "The Amber Inn costs 65 crowns.", "Gladly! The Amber Inn costs 99 crowns. Enjoy your visit!"
    equal = "You pay 65 crowns at the Amber Inn."
    with judge.serving() as url:
        client = ChatEndpoint(ServiceConfig(url=url, model=judge.MODEL, retries=0))
        shown = [Exhibit(prompt=PROMPT)] * 2
        judged = judge_pairs(client, shown, [short, short], [wrong, equal])
        assert judge_scores(client, shown, [short, wrong]).tolist() == [3, 5]  # 2.75 and 5.25 points
        item = RetrievalItem(question=PROMPT, answer=wrong, contexts=(OTHER, CARD), reference=short)
        honest = replace(item, answer=f"{short} It is open from 9 to 20.")
        assert faithfulness(client, [item, honest]).tolist() == [0.0, 0.5]  # 9 to 20 is on another place's card
        assert context_recall(client, [item]).tolist() == [1.0]
        assert context_precision(client, [item]).tolist() == [0.5]  # the useful passage is the second one
    assert judged.first_shown_first.tolist() == [0.0, 1.0]
    assert judged.first_shown_last.tolist() == [0.0, 0.0]  # of two about equal answers the one shown first


def test_pairs_are_of_different_answers_in_random_order() -> None:
    answers = {"a": ["x"] * 60, "b": ["x"] * 60, "c": ["y"] * 60}
    found = choose_pairs([f"question {i}" for i in range(60)], answers, seed=0)
    assert len(found) == 120  # a and b gave the same answer to every question
    assert all({answer.text for answer in item.answers} == {"x", "y"} for item in found)
    assert 30 < sum(item.answers[0].policy == "c" for item in found) < 90


@pytest.fixture(scope="module")
def compared(folder: Path) -> Compared:
    join_seeds(folder, [4])
    with judge.serving() as url:
        return evaluate(folder, JudgeService(url=url, model=judge.MODEL, is_simulated=True))


def test_people_vote_on_every_item_and_the_judge_never_fails(compared: Compared) -> None:
    report = compared.report
    assert (report.base, report.arms) == (BASE, tuple(arm.name for arm in ARMS))
    assert report.votes == SIZES.items * PAIRS * OVERLAP and report.unmatched_votes == 0
    assert report.usage.failures == 0
    assert {cell.failed for cell in report.table} == {0}
    first = max(report.ranking_by_people, key=lambda each: each.strength or 0)
    assert first.arm == "raft_ppo"


def test_the_guideline_agrees_with_people_and_a_constant_metric_may_not_gate(compared: Compared) -> None:
    found = {each.metric: each for each in compared.report.agreement}
    assert found["quality"].verdict is Verdict.AGREES and found["fact"].verdict is Verdict.AGREES
    assert found["context_recall"].accuracy == 0.5 and found["context_recall"].why_not


def test_the_page_follows_the_numbers(compared: Compared, tmp_path: Path) -> None:
    items = len(compared.arms.items)
    labels = tuple("known" if number % 2 else "new" for number in range(items))
    run = Circumstances(
        seeds=(4,),
        seed_of_item=(4,) * items,
        label_of_item=labels,
        raters=6,
        judge=judge.MODEL,
        is_judge_simulated=True,
        minutes=(12.3, 9.8),
    )
    write_page(compared, run, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert (tmp_path / "images" / "page.png").stat().st_size > 10_000 and "](images/page.png)" in page
    assert "People rank `raft_ppo` first" in page and "by seed: 12, 10." in page and "simulated raters" in page
    mean = compared.report.result("fact", "base_passages").mean
    row = next(line for line in page.splitlines() if line.startswith("| `base_passages` | ") and "[" in line)
    assert f"{mean.value:.3g}" in row
    # The judge likes long answers with wrong facts; people prefer short ones with the right fact.
    line = next(line for line in page.splitlines() if line.startswith("- `judge_score` puts"))
    assert "states the right fact" in line and "Its answers are longer" in line
    values = next(each for each in compared.measured.scores if each.name == "fact").values
    half = values[np.array(labels) == "new"].mean(0)
    parts = page.partition("## Known and new")[2]
    assert f"| `raft` | {values[1::2, ARMS.index(next(a for a in ARMS if a.name == 'raft'))].mean():.3g}" in parts
    assert f"{half[0]:.3g}" in parts


def test_a_judge_is_named_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--judge-url", "http://127.0.0.1:1/v1", "--runs", str(tmp_path)])
    assert "--judge-url and --judge-model go together" in capsys.readouterr().err
