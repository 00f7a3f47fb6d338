"""Data of the comparison: what every arm learns from, and the held-out questions that all arms answer.

The office has a card for each place. A part of the places is new: their cards are in the index of passages, and in no
training data. The base model has learned to copy and has read the cards of other countries; it knows neither this
country nor the office's habits.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

from examples.repeats import SYLLABLES, make_repeats
from examples.travel.answers import Habits, compose, write_answer, write_flawed_answer, write_ideal_answer
from examples.travel.guideline import read_prompt
from examples.travel.passages import ask_about
from examples.travel.raters import Comparison, label
from examples.travel.world import PREFACES, QUESTIONS, Place, make_prompt, make_world
from rlhf.retrieval.answers import compose as compose_quoted
from rlhf.retrieval.passages import Passage
from rlhf.retrieval.template import PromptTemplate
from rlhf.storage.jsonl import read_lines, to_line

TEMPLATE = Path(__file__).with_name("cards.jinja")
_TEMPLATE = PromptTemplate(source=TEMPLATE.read_text(encoding="utf-8"))
PASSER_BY = Habits(
    exact=0.95, mistake=0.0, detail=0.2, tip=0.1, misplaced=0.5, opening=0.1, closing=0.1, padding=0.3, repeat=0.05
)
"""Writers of the base model's corpus: they know the facts, and nothing of the office's habits."""
COUNTRIES = 60
"""Other countries in the base model's corpus."""
WITHOUT_CARD = 0.2
"""Fraction of the base model's corpus that has no card of the place."""
QUOTED = 0.5
"""Fraction of the others that quote the card first: copying a text is what small models learn to read from."""
MOST_CARDS = 3
SHARE = 10
"""Rows of repeated words for each row of the corpus among them, which is there for the tokenizer's sake."""
NEW_PLACES = 16
"""Places of the 48 whose cards are in no training data."""
FLAWED_SHARE = 0.25
"""Fraction of the comparisons in which one answer has a flaw of policies under optimisation."""

Row = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Rows of each kind, and the PPO steps of the comparison."""

    corpus: int = 10_000
    """Rows of the base model's corpus."""
    repeats: int = 16_000
    """Rows of repeated random words, from which the base model first learns to copy."""
    demonstrations: int = 2_300
    comparisons: int = 1_600
    items: int = 200
    """Held-out questions: one half about known places, the other about new ones."""
    steps: int = 25
    """Of PPO."""


@dataclass(frozen=True)
class TravelCase:
    """A question about a place, as models are asked it and as raters read it."""

    place: Place
    preface: str
    wording: str

    @property
    def question(self) -> str:
        """The question that names its place."""
        return ask_about(self.place, self.preface, self.wording)

    @property
    def record(self) -> str:
        """The question below the office's card, by which raters, judge and guideline check an answer."""
        return make_prompt(self.place, self.preface, self.wording)


@dataclass(frozen=True, kw_only=True)
class Office:
    """The places of one seed, and the questions about them."""

    known: tuple[Place, ...]
    new: tuple[Place, ...]
    training: tuple[TravelCase, ...]
    """About known places."""
    items: tuple[TravelCase, ...]
    """Held-out questions about known and new places, half and half."""


def make_office(seed: int, items: int) -> Office:
    """The office of a seed."""
    places, rng = list(make_world(seed).places), random.Random(f"office-{seed}")
    rng.shuffle(places)
    new, known = places[:NEW_PLACES], places[NEW_PLACES:]
    of_known, of_new = (_shuffled(_cases(group), rng) for group in (known, new))
    half = items // 2
    held_out = _shuffled([*of_known[:half], *of_new[: items - half]], rng)
    return Office(known=tuple(known), new=tuple(new), training=tuple(of_known[half:]), items=tuple(held_out))


def _cases(places: Iterable[Place]) -> list[TravelCase]:
    return [TravelCase(*choice) for choice in product(places, PREFACES, chain.from_iterable(QUESTIONS.values()))]


def _shuffled(cases: Sequence[TravelCase], rng: random.Random) -> list[TravelCase]:
    return rng.sample(cases, len(cases))


def write_data(folder: Path, seed: int, sizes: Sizes) -> None:
    """Write the files of a seed; the same arguments give the same bytes."""
    office = make_office(seed, sizes.items)
    cases = office.training[: sizes.demonstrations]
    answered = [(case, write_answer(case.record, _rng("answer", seed, case))) for case in cases]
    folder.mkdir(parents=True, exist_ok=True)
    corpus = list(_corpus(seed, sizes.corpus))
    _write(folder / "base.jsonl", corpus)
    _write(folder / "copy.jsonl", [*make_repeats(SYLLABLES, sizes.repeats, seed), *corpus[: sizes.repeats // SHARE]])
    _write(
        folder / "demonstrations.jsonl", ({"prompt": ask(case.question), "completion": text} for case, text in answered)
    )
    _write(folder / "questions.jsonl", (_raft_question(case, text) for case, text in answered))
    _write(folder / "known_passages.jsonl", map(_passage_row, office.known))
    _write(folder / "passages.jsonl", map(_passage_row, [*office.known, *office.new]))
    _write(folder / "comparisons.jsonl", _comparisons(cases, sizes.comparisons, seed))
    _write(folder / "items.jsonl", (_item(case, office, seed) for case in office.items))


def ask(question: str, passages: Sequence[Passage] = ()) -> str:
    """The prompt of a question, with or without passages."""
    return _TEMPLATE.text(question, passages)


def _corpus(seed: int, rows: int) -> Iterator[Row]:
    """Questions of other countries, most of them below some cards, and a passer-by's answers."""
    rng = random.Random(f"corpus-{seed}")
    countries = [make_world(1_000 * (seed + 1) + i).places for i in range(COUNTRIES)]
    wordings = list(chain.from_iterable(QUESTIONS.values()))
    for _ in range(rows):
        places = rng.choice(countries)
        case = TravelCase(rng.choice(places), rng.choice(PREFACES), rng.choice(wordings))
        others = rng.sample([place for place in places if place != case.place], rng.randrange(MOST_CARDS))
        cards = [] if rng.random() < WITHOUT_CARD else _passages([case.place, *others])
        rng.shuffle(cards)
        answer = compose(read_prompt(case.record), PASSER_BY, rng)
        is_quoted = bool(cards) and rng.random() < QUOTED
        completion = compose_quoted([make_card(case.place)], answer.strip()) if is_quoted else answer
        yield {"prompt": ask(case.question, cards), "completion": completion}


def make_card(place: Place) -> str:
    """The office's card of a place. The name comes first, in the tokens of the question (after a space): then a small
    model copies the card word by word."""
    facts = f"{place.quarter} quarter, {place.price} crowns, {place.opens} to {place.closes}"
    return f"The {place.name}: {place.city}, {facts}."


def _passages(places: Iterable[Place]) -> list[Passage]:
    return [Passage(**_passage_row(place)) for place in places]


def _passage_row(place: Place) -> dict[str, str]:
    return {"id": place.name, "text": make_card(place), "document": place.name}


def _raft_question(case: TravelCase, answer: str) -> Row:
    return {
        "question": case.question,
        "answer": answer.strip(),
        "quote": make_card(case.place),
        "oracle": case.place.name,
    }


def _comparisons(cases: Sequence[TravelCase], count: int, seed: int) -> Iterator[Row]:
    """Two writers' answers to a question, in a part of the cases one of them flawed, in a rater's order."""
    rng = random.Random(f"compared-{seed}")
    for i in range(count):
        case = cases[i % len(cases)]
        first = second = write_answer(case.record, rng)
        write = write_flawed_answer if rng.random() < FLAWED_SHARE else write_answer
        while second == first:
            second = write(case.record, rng)
        pair = (first, second) if label(Comparison(case.record, first, second), rng) else (second, first)
        yield {"prompt": ask(case.question), "chosen": pair[0], "rejected": pair[1], "question": case.question}


def write_quoted_comparisons(folder: Path) -> None:
    """Write ``quoted_comparisons.jsonl``: the same comparisons below passages, with the quote before the answers.

    Reads ``comparisons.jsonl`` and the dataset that ``rlhf retrieval build`` has written into the folder.
    """
    built = {row["question"]: row for row in read_lines(folder / "dataset" / "train.jsonl")}
    rows = []
    for row in read_lines(folder / "comparisons.jsonl"):
        asked = built[row["question"]]
        answers = {name: compose_quoted(asked["quotes"], row[name].strip()) for name in ("chosen", "rejected")}
        rows.append({"prompt": asked["prompt"], **answers})
    _write(folder / "quoted_comparisons.jsonl", rows)


def _item(case: TravelCase, office: Office, seed: int) -> Row:
    return {
        "prompt": case.record,
        "question": case.question,
        "reference": write_ideal_answer(case.record, _rng("reference", seed, case)).strip(),
        "label": "known" if case.place in office.known else "new",
        "seed": seed,
    }


def _rng(purpose: str, seed: int, case: TravelCase) -> random.Random:
    return random.Random(f"{purpose}-{seed}-{case.question}")


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(map(to_line, rows)), encoding="utf-8")
