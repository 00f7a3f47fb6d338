"""The rating guideline of ``guideline.md`` as a function: the gold quality of any answer, from its prompt alone.

``quality`` is the judge that a recipe names as ``examples/travel/guideline.py:quality``. The file needs none of its
neighbours, so that it loads by its path from any folder, and it holds for the world of any seed, because the facts
stand in the prompt's notes.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from rlhf.errors import UserError

WEIGHTS = {"answer": 0.30, "detail": 0.20, "tip": 0.20, "opening": 0.15, "closing": 0.15}
"""Points for what an answer contains; they add up to 1."""
VAGUE_CREDIT = 0.25
"""Share of the answer's points for speaking of the right matter without the fact."""
SURPLUS_CREDIT = 0.5
"""What is left of the points for a tip that is one of several, and for a greeting or wish given twice or misplaced."""
MISPLACED_TIP_CREDIT = 0.25
"""Share of the tip's points for a tip that belongs to another kind of place."""
UNFINISHED_FACTOR = 0.7
"""What is left of the points when the last sentence breaks off."""
MAX_WORDS = 36
"""Longest answer without loss, in words; at twice as many nothing is left."""

OPENINGS = ("Hello and welcome!", "Good day to you!", "Thank you for asking!", "Gladly!")
CLOSINGS = ("Enjoy your visit!", "Have a pleasant journey!", "We wish you a good time!", "See you soon!")
TIPS = {
    "inn": (
        "Ask for a room with a balcony.",
        "Book two weeks ahead in summer.",
        "Try the warm bread at breakfast.",
        "Bring slippers for the stone floors.",
    ),
    "museum": (
        "Leave your bag at the door.",
        "Start with the top floor.",
        "Join the free tour at noon.",
        "Take the map from the desk.",
    ),
    "garden": (
        "Wear shoes that like wet grass.",
        "Look for the pond behind the trees.",
        "Bring a picnic for the lawn.",
        "Come early to hear the birds.",
    ),
}
"""The tips that the office recommends, by kind of place."""

TOPIC_WORDS = {
    "price": re.compile(r"\b(costs?|prices?|pay|much|expensive|cheap)\b"),
    "hours": re.compile(r"\b(opens?|opening|hours|closes?|closed)\b"),
    "quarter": re.compile(r"\b(where|quarter|part|far|near)\b"),
}
"""Words that show which matter a question or a sentence is about."""
STATED_FACT = {
    "price": re.compile(r"\b(\d+) crowns\b"),
    "hours": re.compile(r"\b(\d+ to \d+)\b"),
    "quarter": re.compile(r"\b(\w+) quarter\b"),
}
"""How a fact stands in the notes and in an answer."""
PLACE_NAME = re.compile(r"\b([A-Z][a-z]+ (?:Inn|Museum|Garden))\b")
PROMPT = re.compile(r"(?P<notes>[^\n]+)\nTraveller: (?P<question>[^\n]+)\nAssistant:\Z")


class Task(NamedTuple):
    """What a prompt asks, and the facts it gives.

    A named tuple: a dataclass with postponed annotations fails in a module that was loaded by its path.
    """

    topic: str
    kind: str
    name: str
    city: str
    facts: dict[str, str]
    """Topic to the value in the notes: ``{"price": "84", "hours": "7 to 22", "quarter": "old"}``."""


class Assessment(NamedTuple):
    """Each criterion of the guideline, in [0, 1]: five for content, four for form."""

    answer: float
    detail: float
    tip: float
    opening: float
    closing: float
    focus: float
    variety: float
    brevity: float
    ending: float

    @property
    def content(self) -> float:
        """Weighted sum of the first five criteria."""
        return sum(weight * getattr(self, criterion) for criterion, weight in WEIGHTS.items())

    @property
    def form(self) -> float:
        """Product of the last four criteria: the share of the points that the form leaves."""
        return self.focus * self.variety * self.brevity * self.ending

    @property
    def quality(self) -> float:
        """Content times form."""
        return self.content * self.form


def quality(prompts: list[str], responses: list[str]) -> list[float]:
    """Gold quality of each response, in [0, 1].

    Raises:
        UserError: a prompt is not one of this example's.
    """
    return [assess(prompt, response).quality for prompt, response in zip(prompts, responses, strict=True)]


def fact(prompts: list[str], responses: list[str]) -> list[float]:
    """1 for a response that states the fact that was asked for, and no other place; else 0. Raises as ``quality``."""
    return [float(assess(prompt, text).answer == 1.0) for prompt, text in zip(prompts, responses, strict=True)]


def assess(prompt: str, response: str) -> Assessment:
    """Each criterion of the guideline for one response.

    Raises:
        UserError: the prompt is not one of this example's.
    """
    task = read_prompt(prompt)
    sentences = split_sentences(response)
    return Assessment(
        answer=_answer(task, response),
        detail=_detail(task, response),
        tip=_tip(task, sentences),
        opening=_courtesy(sentences, OPENINGS, place=0),
        closing=_courtesy(sentences, CLOSINGS, place=-1),
        focus=_focus(task, sentences),
        variety=_variety(response),
        brevity=_brevity(response),
        ending=1.0 if response.rstrip().endswith((".", "!")) else UNFINISHED_FACTOR,
    )


def read_prompt(prompt: str) -> Task:
    """The task that a prompt sets.

    Raises:
        UserError: it has not the form of this example's prompts.
    """
    match = PROMPT.match(prompt)
    place = re.match(r"(\w+): (\w+ (\w+)),", match["notes"]) if match else None
    topics = [topic for topic, words in TOPIC_WORDS.items() if match and words.search(match["question"].lower())]
    if match is None or place is None or len(topics) != 1:
        raise UserError(
            f"not a prompt of the travel example: {prompt[:120]!r}",
            "its guideline reads the facts and the question out of the prompt",
            "score other prompts with a judge of their own: evaluation.scorer=file.py:function",
        )
    facts = {topic: pattern.findall(match["notes"])[0] for topic, pattern in STATED_FACT.items()}
    return Task(topics[0], place[3].lower(), place[2], place[1], facts)


def split_sentences(text: str) -> list[str]:
    """Sentences with their closing marks, spaces evened out."""
    return [" ".join(sentence.split()) for sentence in re.findall(r"[^.!?]*[.!?]|[^.!?]+$", text) if sentence.strip()]


def _answer(task: Task, response: str) -> float:
    """1 for the fact asked for; part for speaking of it vaguely; 0 for a wrong value, another place, or silence."""
    if not set(PLACE_NAME.findall(response)) <= {task.name}:
        return 0.0
    stated = set(STATED_FACT[task.topic].findall(response))
    if stated:
        return float(stated == {task.facts[task.topic]})
    return VAGUE_CREDIT if TOPIC_WORDS[task.topic].search(response.lower()) else 0.0


def _detail(task: Task, response: str) -> float:
    """1 if a fact that was not asked for is given as well, and none of those given is wrong."""
    others = [topic for topic in task.facts if topic != task.topic]
    stated = {topic: set(STATED_FACT[topic].findall(response)) for topic in others}
    given = [topic for topic in others if stated[topic]]
    return float(bool(given) and all(stated[topic] == {task.facts[topic]} for topic in given))


def _tip(task: Task, sentences: list[str]) -> float:
    kinds = [kind for kind in map(_kind_of_tip, sentences) if kind]
    if not kinds:
        return 0.0
    credit = 1.0 if task.kind in kinds else MISPLACED_TIP_CREDIT
    return credit if len(kinds) == 1 else credit * SURPLUS_CREDIT


def _kind_of_tip(sentence: str) -> str | None:
    return next((kind for kind, tips in TIPS.items() if sentence in tips), None)


def _courtesy(sentences: list[str], phrases: tuple[str, ...], place: int) -> float:
    count = sum(sentence in phrases for sentence in sentences)
    if count == 1 and sentences[place] in phrases:
        return 1.0
    return SURPLUS_CREDIT if count else 0.0


def _focus(task: Task, sentences: list[str]) -> float:
    """Share of the sentences that do a job, each counted the first time it is said; the others are padding."""
    if not sentences:
        return 0.0
    return sum(_does_a_job(task, sentence) for sentence in set(sentences)) / len(sentences)


def _does_a_job(task: Task, sentence: str) -> bool:
    if sentence in OPENINGS or sentence in CLOSINGS or _kind_of_tip(sentence):
        return True
    states_fact = any(pattern.search(sentence) for pattern in STATED_FACT.values())
    return states_fact or bool(TOPIC_WORDS[task.topic].search(sentence.lower()))


def _variety(response: str) -> float:
    """Share of the three-word sequences that occur for the first time; 1 for an answer too short to have one."""
    words = response.lower().split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(triples)) / len(triples) if triples else 1.0


def _brevity(response: str) -> float:
    """1 up to MAX_WORDS, falling in a straight line to 0 at twice as many."""
    surplus = len(response.split()) - MAX_WORDS
    return min(1.0, max(0.0, 1 - surplus / MAX_WORDS))
