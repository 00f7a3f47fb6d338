"""Projects for the page's tests: items whose texts say what they are, and links for raters."""

from __future__ import annotations

import time
from pathlib import Path

from rlhf.feedback.access import AccessRole, issue_token
from rlhf.feedback.items import make_item
from rlhf.feedback.records import Answer, Choice, Item, Purpose
from rlhf.feedback.settings import ProjectSettings
from rlhf.feedback.store import Store
from rlhf.records import Message

POLICIES = ("ppo-secret-step-40", "sft-secret-base")
GUIDELINES = """# How to judge

Prefer the answer that is **true** and does what was asked.

```example
prompt: What is the capital of Australia?
a: Sydney.
b: Canberra.
choice: b_much
why: Canberra is the capital; a wrong fact outweighs everything else.
```
"""


def comparison(number: int, purpose: Purpose = Purpose.LABEL, gold: Choice | None = None) -> Item:
    """An item whose first answer is "first N" and whose second is "second N"."""
    prompt = (Message("system", "Be brief."), Message("user", f"Question {number}?"))
    answers = (
        Answer(text=f"first {number}", policy=POLICIES[0], seed=1234567 + number),
        Answer(text=f"second {number}", policy=POLICIES[1], seed=7654321 + number),
    )
    why = f"Explanation {number}." if gold else ""
    return make_item(prompt, answers, purpose=purpose, gold=gold, explanation=why, round="round-secret")


def make_project(path: Path, items: list[Item], *, raters: int = 1, **settings: object) -> Store:
    """A project with raters r1, r2, ..., an adjudicator and no guidelines."""
    store = Store.create(path, ProjectSettings(**settings), seed=1)  # type: ignore[arg-type]
    store.add_items(items)
    for number in range(raters):
        store.add_rater(f"r{number + 1}")
    store.add_rater("judge", is_adjudicator=True)
    return store


def token_of(store: Store, alias: str, role: AccessRole = AccessRole.RATER) -> str:
    """A token that is valid for an hour."""
    return issue_token(store, alias, role, seconds=3600.0, now=time.time())
