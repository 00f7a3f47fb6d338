"""The acts of the demo. Each takes over the state that the one before left, and returns what the page shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from examples.travel.demo.live import LiveService, audit_of, gateway, stage_of
from examples.travel.demo.place import DemoPlace, Result
from examples.travel.demo.releases import decide, promote, refuse_stale, register, value_rows, write_values
from examples.travel.demo.training import (
    FAULTY,
    FIRST,
    NEXT,
    STAGES,
    answer_prompts,
    evaluation_prompts,
    known_prompts,
    make_rows,
    offline_prompts,
    train_faulty,
    train_first,
    train_on_thumbs,
)
from examples.travel.demo.users import UserQuestion, draw_questions, split_by_topic
from examples.travel.guideline import quality
from rlhf.errors import MachineryError
from rlhf.evaluation.metric_table import MetricScores, summarise
from rlhf.feedback.store import Store
from rlhf.storage.jsonl import read_lines

STEPS = ("shadow", "canary", "production")
SHADOW_EVENTS = 50
"""Copies that the gate for canary needs, as in gates/canary.yaml."""
CANARY_THUMBS = 60
"""Thumbs that the gate for production needs, as in gates/production.yaml."""

MOST_MORE = 3
"""Times the users of a canary that come after them, at most, until there are those thumbs."""


def train(place: DemoPlace, state: Path) -> Result:
    """Train the first model on demonstrations and on the raters' votes."""
    make_rows(place)
    seconds = train_first(place)
    rows = read_lines(place.root / "runs" / FIRST / "ppo" / "answers.jsonl")
    prompts = [str(row["prompt"]) for row in rows]
    both = [quality(prompts, [str(row[side]) for row in rows]) for side in ("before", "after")]
    return {"training_seconds": seconds, "quality": measure(both, ("SFT", FIRST)), "steps": place.sizes.steps}


def release(place: DemoPlace, state: Path) -> Result:
    """Bring the first model to production, step by step; each gate has its own part of the offline set."""
    register(place, state, FIRST, place.model(FIRST, STAGES[FIRST]), "SFT, reward model and PPO")
    prompts = offline_prompts(place)
    rows = value_rows(prompts, answer_prompts(place, FIRST, prompts), None, place.sizes.demand)
    decisions = []
    for number, step in enumerate(STEPS):
        part = [row for row in rows if row["item"] % len(STEPS) == number]
        file = write_values(state, f"{FIRST}-{step}", part)
        decisions.append(decide(place, state, "first", FIRST, file, f"for={step}", *place.sizes.gate_settings))
        require_pass(decisions[-1])
        promote(place, state, FIRST, decisions[-1])
    Store.create(state / "votes.db").close()
    return {"decisions": decisions}


def pass_offline(place: DemoPlace, state: Path) -> Result:
    """Train the faulty candidate, and let it pass the offline gate; the first model's gate does not promote it."""
    seconds = train_faulty(place)
    register(place, state, FAULTY, place.model(FAULTY, STAGES[FAULTY]), "trained on the newest demonstrations")
    stale = state / "gates" / f"{FIRST}-shadow" / "gate.json"
    refusal = refuse_stale(place, state, FAULTY, {"for": "shadow", "version": FIRST, "file": str(stale)})
    decision = compare_offline(place, state, FAULTY, offline_prompts(place))
    require_pass(decision)
    promote(place, state, FAULTY, decision)
    return {"training_seconds": seconds, "refusal": refusal, "decision": decision}


def return_canary(place: DemoPlace, state: Path) -> Result:
    """Serve users by the first model, then a share of them by the faulty one, until the gateway withdraws it."""
    sizes = place.sizes
    with gateway(state, "act-4", sizes.demand) as live:
        live.wait_for("production", FIRST)
        came = live.serve_users(questions_of(place, "before", sizes.before))
        users, decision = _pass_shadow(place, state, live, FAULTY)
        came += users
        asked = questions_of(place, "canary", sizes.users)
        came += live.serve_users(asked, lambda: stage_of(state, FAULTY) != "canary")
        came += live.serve_users(questions_of(place, "after", sizes.after))
    if stage_of(state, FAULTY) != "withdrawn":
        raise MachineryError(f"{FAULTY} was not withdrawn by the gateway within {sizes.users} users")
    return {"users": came, "decision": decision, "audit": audit_of(state), "thumbs": thumbs_by_version(state)}


def learn(place: DemoPlace, state: Path) -> Result:
    """Train the next round on the thumbs, and measure what it gained by the world's true quality."""
    thumbs = thumbs_by_version(state)
    seconds = train_on_thumbs(place, state / "votes.db")
    prompts = evaluation_prompts(place)
    answers = {version: answer_prompts(place, version, prompts) for version in (FIRST, FAULTY, NEXT)}
    found = {version: quality(prompts, given) for version, given in answers.items()}
    is_missing = [prompt in set(split_by_topic(prompts)[0]) for prompt in prompts]
    parts = {"missing": is_missing, "others": [not each for each in is_missing]}
    by_topic = {
        name: measure([list(np.array(found[v])[np.array(part)]) for v in found], tuple(found))
        for name, part in parts.items()
    }
    return {
        "training_seconds": seconds,
        "thumbs": thumbs,
        "quality": measure(list(found.values()), tuple(found)),
        "by_topic": by_topic,
        "example": {v: answers[v][is_missing.index(True)] for v in answers}
        | {"prompt": prompts[is_missing.index(True)]},
    }


def release_next(place: DemoPlace, state: Path) -> Result:
    """Bring the next round to production through shadow and canary, as far as its gates allow."""
    register(place, state, NEXT, place.model(NEXT, STAGES[NEXT]), "KTO on the users' thumbs")
    decisions = [compare_offline(place, state, NEXT, evaluation_prompts(place))]
    if decisions[0]["outcome"] == "pass":
        promote(place, state, NEXT, decisions[0])
        with gateway(state, "act-6", place.sizes.demand) as live:
            live.wait_for("production", FIRST)
            decisions.append(_pass_shadow(place, state, live, NEXT)[1])
            asked = questions_of(place, "next", place.sizes.users)
            live.serve_users(asked, lambda: stage_of(state, NEXT) != "canary")
            more = questions_of(place, "more", MOST_MORE * place.sizes.users)  # how many of them give a thumb is chance
            live.serve_users(
                more, lambda: stage_of(state, NEXT) != "canary" or live.has_counted("thumbs_down", CANARY_THUMBS)
            )
            if stage_of(state, NEXT) == "canary":
                counts = live.write_counts(f"{NEXT}-production", "thumbs_down", CANARY_THUMBS)
                decisions.append(decide(place, state, "production", NEXT, counts))
                if decisions[-1]["outcome"] == "pass":
                    promote(place, state, NEXT, decisions[-1])
                    live.wait_for("production", NEXT)
                    live.serve_users(questions_of(place, "last", place.sizes.after))
    return {
        "decisions": decisions,
        "stage": stage_of(state, NEXT),
        "audit": audit_of(state),
        "thumbs": thumbs_by_version(state),
    }


def _pass_shadow(place: DemoPlace, state: Path, live: LiveService, version: str) -> tuple[int, Result]:
    """Let a shadow answer copies, and promote it to canary; returns the users and the gate's decision."""
    live.wait_for("shadow", version)
    came = live.serve_users(questions_of(place, f"shadow-{version}", place.sizes.warm_up))
    counts = live.write_counts(f"{version}-canary", "errors", SHADOW_EVENTS)
    decision = decide(place, state, "canary", version, counts)
    require_pass(decision)
    promote(place, state, version, decision)
    live.wait_for("canary", version)
    return came, decision


def compare_offline(place: DemoPlace, state: Path, version: str, prompts: list[str]) -> Result:
    """The gate for shadow: a candidate and the first model on the same questions."""
    candidate, production = (answer_prompts(place, each, prompts) for each in (version, FIRST))
    rows = value_rows(prompts, candidate, production, place.sizes.demand)
    return decide(place, state, "shadow", version, write_values(state, f"{version}-shadow", rows))


def questions_of(place: DemoPlace, label: str, count: int) -> list[UserQuestion]:
    """Users and their questions."""
    return draw_questions(known_prompts(place), count, label, place.seed)


def require_pass(decision: Result) -> None:
    """Stop if the story cannot go on.

    Raises:
        MachineryError: a gate has not passed.
    """
    if decision["outcome"] != "pass":
        what = f"the gate of {decision['version']} for {decision['for']} is {decision['outcome']}"
        raise MachineryError(f"{what}, and the demo needs it to pass: try another --seed. {decision['summary']}")


def thumbs_by_version(state: Path) -> Result:
    """Thumbs up and down by the version that answered."""
    found: Result = {}
    with Store.open(state / "votes.db") as store:
        for thumb in store.thumbs():
            counts = found.setdefault(thumb.answer.policy, {"up": 0, "down": 0})
            counts["up" if thumb.is_good else "down"] += 1
    return found


def measure(values: list[list[float]], arms: tuple[str, ...]) -> Result:
    """Mean of each arm, and its difference from the first one, with 95% intervals over the questions."""
    scores = MetricScores(name="quality", values=np.array(values, dtype=np.float64).T)
    rows = summarise(scores, arms, 0, np.arange(len(scores.values)), seed=0)
    return {
        row.arm: {
            "mean": [row.mean.value, row.mean.low, row.mean.high],
            "gain": None if row.difference is None else [row.difference.value, row.difference.low, row.difference.high],
            "questions": len(scores.values),
        }
        for row in rows
    }
