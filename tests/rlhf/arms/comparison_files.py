"""Files of a small comparison: items, two arms, and votes on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf.feedback.items import make_item
from rlhf.feedback.records import Answer, Choice, Vote
from rlhf.feedback.settings import ProjectSettings
from rlhf.feedback.store import Store


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_comparison(
    folder: Path, items: Sequence[Mapping[str, Any]], arms: Mapping[str, Sequence[str]], **settings: Any
) -> Path:
    """Write items, one answer of each arm to each item, and the comparison's file; returns its path."""
    write_rows(folder / "items.jsonl", items)
    for name, answers in arms.items():
        rows = [{"prompt": item["prompt"], "response": answer} for item, answer in zip(items, answers, strict=True)]
        write_rows(folder / f"{name}.jsonl", rows)
    content = {
        "items": "items.jsonl",
        "arms": {name: f"{name}.jsonl" for name in arms},
        "base": "base",
        **settings,
    }
    path = folder / "comparison.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def write_votes(path: Path, pairs: Sequence[tuple[str, Answer, Answer, Choice]]) -> Path:
    """A project with one vote on each pair."""
    store = Store.create(path, ProjectSettings(), seed=0, clock=lambda: 1000.0)
    with store:
        items = [make_item(prompt, (first, second)) for prompt, first, second, _ in pairs]
        store.add_items(items)
        store.add_rater("r1")
        votes = [
            Vote(id=f"v{i}", item=item.id, rater="r1", choice=pair[3])
            for i, (item, pair) in enumerate(zip(items, pairs))
        ]
        store.import_votes(votes)
    return path
