"""The travel world as passages and questions: ``python -m examples.travel.passages --out data/travel_retrieval``.

A passage holds the facts of one place, or the office's tips for one kind of place (``guideline.py``), so the answer has
to be found among passages and not in notes beside the question, as in ``make_data.py``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from examples.travel.guideline import CLOSINGS, OPENINGS, TIPS
from examples.travel.world import ADMISSION, PREFACES, QUESTIONS, Place, World, make_world
from rlhf.storage.jsonl import to_line

Row = Mapping[str, object]
HABITS = {"Greetings of the office": OPENINGS, "Good wishes of the office": CLOSINGS}


def facts_of(place: Place) -> dict[str, tuple[str, str]]:
    """Topic → the passage's sentence about it, and the answer in it."""
    admission, hours = ADMISSION[place.kind], f"{place.opens} to {place.closes}"
    return {
        "quarter": (
            f"The {place.name} is in the {place.quarter} quarter of {place.city}.",
            f"the {place.quarter} quarter",
        ),
        "price": (f"The price of {admission} is {place.price} crowns.", f"{place.price} crowns"),
        "hours": (f"It is open from {hours}.", hours),
    }


def passages_of(world: World) -> Iterator[Row]:
    """One passage for each place, each kind's tips, the greetings and the wishes."""
    for place in world.places:
        text = " ".join(sentence for sentence, _ in facts_of(place).values())
        yield {"id": place.name, "title": f"{place.name}, {place.city}", "text": text, "document": place.name}
    for kind, tips in TIPS.items():
        yield {"id": f"tips {kind}", "title": f"Tips for visitors of any {kind}", "text": " ".join(tips)}
    for title, sentences in HABITS.items():
        yield {"id": title, "title": title, "text": " ".join(sentences)}


def questions_of(world: World) -> Iterator[Row]:
    """Every wording of every question about every place, with its passage, quote and answer."""
    for place in world.places:
        for topic, (sentence, answer) in facts_of(place).items():
            for preface in PREFACES:
                for wording in QUESTIONS[topic]:
                    text = ask_about(place, preface, wording)
                    yield {"question": text, "answer": answer, "quote": sentence, "oracle": place.name}


def ask_about(place: Place, preface: str, wording: str) -> str:
    """A question that names its place, to be asked without the office's notes."""
    return f"{preface} About the {place.name}: {wording.format(admission=ADMISSION[place.kind])}".strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``passages.jsonl`` and ``questions.jsonl``; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the travel world as passages and questions.")
    parser.add_argument("--out", type=Path, default=Path("data/travel_retrieval"), help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the world")
    options = parser.parse_args(arguments)
    world = make_world(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("passages", passages_of(world)), ("questions", questions_of(world))):
        (options.out / f"{name}.jsonl").write_text("".join(map(to_line, rows)), encoding="utf-8")
    print(f"passages and questions → {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
