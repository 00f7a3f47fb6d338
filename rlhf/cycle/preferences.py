"""The comparison of candidate and production by people: the pairs that they see, and what they preferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.arms.answers import Arms
from rlhf.arms.people import PeoplesVotes
from rlhf.config.schema import DataConfig
from rlhf.data.formats import load_prompts
from rlhf.data.split import canonical_prompt
from rlhf.evaluation.intervals import mean_interval
from rlhf.feedback.items import make_item
from rlhf.feedback.records import Answer, Item

CANDIDATE, PRODUCTION = "candidate", "production"
"""The arms."""
PREFERRED = "preferred"
"""The metric of people's preferences in a gate."""


def pairs_to_compare(arms: Arms, items: str, round: str) -> list[Item]:
    """Both arms' first answers to each item, where they differ. The order of a pair is the item's and not the raters':
    the assignment chooses sides.

    Args:
        items: the file of the items, whose prompts raters see as they are written.
        round: name of the round.
    """
    prompts = {canonical_prompt(row.prompt): row.prompt for row in load_prompts(DataConfig(prompts=items)).rows}
    first = {name: arm.first for name, arm in zip(arms.names, arms.arms)}
    return [
        make_item(
            prompts[item.prompt],
            (
                Answer(text=first[CANDIDATE][number], policy=CANDIDATE),
                Answer(text=first[PRODUCTION][number], policy=PRODUCTION),
            ),
            round=round,
            group=item.group,
        )
        for number, item in enumerate(arms.items)
        if first[CANDIDATE][number] != first[PRODUCTION][number]
    ]


def preference_rows(arms: Arms, people: PeoplesVotes | None) -> list[dict[str, Any]]:
    """Rows for a gate: for each item 1 for the arm that people prefer, 0 for the other, and 0.5 for ties.

    Equal answers are ties that nobody had to look at: without them, a candidate that differs from production on a few
    items only would be judged by these alone. Items on which people gave no judgement are left out.
    """
    names = arms.names
    values: dict[int, float] = {}
    for number in range(len(arms.items)):
        if len({arm.first[number] for arm in arms.arms}) == 1:
            values[number] = 0.5
    for outcome in people.outcomes if people else ():
        values[outcome.item] = outcome.value if names[outcome.first] == CANDIDATE else 1 - outcome.value
    return [
        {
            "metric": PREFERRED,
            "item": number,
            "cluster": arms.items[number].group or str(number),
            CANDIDATE: value,
            PRODUCTION: 1 - value,
        }
        for number, value in sorted(values.items())
    ]


def preference_kpi(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of people's preferences for the candidate, with its 95% interval."""
    values = [float(row[CANDIDATE]) for row in rows]
    if not values:
        return {"n": 0}
    low, high = mean_interval(values, [row["cluster"] for row in rows])
    return {
        "n": len(values),
        CANDIDATE: {"value": sum(values) / len(values), "low": max(low, 0.0), "high": min(high, 1.0)},
    }


def metric_kpis(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Means of each metric and arm with their intervals, from a comparison's report."""
    found: dict[str, dict[str, Any]] = {}
    for cell in report["table"]:
        mean = cell["mean"]
        kpi = found.setdefault(cell["metric"], {"n": mean["items"]})
        kpi[cell["arm"]] = {key: mean[key] for key in ("value", "low", "high")}
    return found
