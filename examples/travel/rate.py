"""Simulated raters label a project: ``python -m examples.travel.rate feedback.db --votes 2000``.

They vote through the store as people do through the page: each gets the next item, sees its two sides, and judges by
the guideline with the noise of ``raters.py``.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import uuid
from dataclasses import replace
from itertools import cycle
from pathlib import Path

from examples.travel.raters import RATERS, Comparison, Rater
from rlhf.errors import UserError
from rlhf.feedback.assign import AssignedItem, next_item
from rlhf.feedback.records import Choice, Vote
from rlhf.feedback.store import Store

CLEAR = 0.9
"""Probability of the preferred answer from which a rater calls it much better."""
SECONDS = 12.0
"""Median time of a vote."""


def rate(store: Store, votes: int, raters: int, seed: int) -> int:
    """Have ``raters`` simulated raters give ``votes`` votes in turn, or fewer if no item is left; returns how many."""
    people = [replace(RATERS[i % len(RATERS)], name=f"{RATERS[i % len(RATERS)].name}-{i + 1}") for i in range(raters)]
    for person in people:
        store.add_rater(person.name)
    given, idle = 0, 0
    for person in cycle(people):
        if given == votes or idle == raters:
            return given
        assignment = next_item(store, person.name, time.time())
        idle = idle + 1 if assignment is None else 0
        if assignment is not None:
            guideline = store.guideline()
            store.add_vote(_vote(assignment, person, seed, None if guideline is None else guideline.version))
            given += 1
    return given


def _vote(assignment: AssignedItem, rater: Rater, seed: int, guideline: int | None) -> Vote:
    item = assignment.item
    rng = random.Random(f"{seed} {rater.name} {item.id} {assignment.is_repeat}")
    prompt = item.prompt if isinstance(item.prompt, str) else item.prompt[-1].content
    probability = rater.probability(Comparison(prompt, item.answers[0].text, item.answers[1].text))
    first, is_clear = rng.random() < probability, max(probability, 1 - probability) >= CLEAR
    slightly, much = (
        (Choice.FIRST_SLIGHTLY, Choice.FIRST_MUCH) if first else (Choice.SECOND_SLIGHTLY, Choice.SECOND_MUCH)
    )
    return Vote(
        id=str(uuid.UUID(int=rng.getrandbits(128))),
        item=item.id,
        rater=rater.name,
        choice=much if is_clear else slightly,
        is_swapped=assignment.is_swapped,
        seconds=round(SECONDS * rng.lognormvariate(0, 0.5), 1),
        guideline=guideline,
        time=time.time(),
        is_repeat=assignment.is_repeat,
        is_adjudication=assignment.is_adjudication,
    )


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Let simulated raters label the travel example's project.")
    parser.add_argument("project", type=Path, help="the project's file, with items of the travel example")
    parser.add_argument("--votes", type=int, default=2000, help="votes to give (default: %(default)s)")
    parser.add_argument("--raters", type=int, default=6, help="raters (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of their errors")
    arguments = parser.parse_args()
    try:
        with Store.open(arguments.project) as store:
            given = rate(store, arguments.votes, arguments.raters, arguments.seed)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{given:,} votes → {arguments.project}")
    if given < arguments.votes:
        print("no item is left for these raters: more raters (--raters) or more pairs can be judged")
    return 0


if __name__ == "__main__":
    sys.exit(main())
