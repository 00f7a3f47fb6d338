"""How large a demo is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DemoSizes:
    """Rows, steps, questions and users of a demo. The defaults take a quarter of an hour on two cores at most."""

    demonstrations: int = 4000
    preferences: int = 3000
    steps: int = 12
    """Of PPO."""
    faulty_rows: int = 1600
    """Demonstrations of the faulty candidate."""
    offline: int = 240
    """Questions of the offline set."""
    evaluation: int = 300
    """Questions on which true quality is measured at the end."""
    warm_up: int = 120
    """Users during the shadow."""
    before: int = 500
    """Users before there is a candidate."""
    users: int = 320
    """Users during a canary, at most."""
    after: int = 120
    """Users after a canary's return."""
    kto_epochs: int = 2
    demand: float = 0.6
    """Quality with which half of the users are content."""
    settings: tuple[str, ...] = ()
    """Of the recipe, in every training."""
    gate_settings: tuple[str, ...] = ()
    """Of the first gates: what is asked of a model that has learned little."""


FULL = DemoSizes()
SMALL = DemoSizes(
    demonstrations=1600,
    preferences=300,
    steps=3,
    faulty_rows=600,
    offline=120,
    evaluation=80,
    warm_up=70,
    before=60,
    users=200,
    after=30,
    kto_epochs=1,
    demand=0.12,
    settings=("ppo.batch_size=32", "evaluation.prompts=20"),
    gate_settings=("kpis.helpful.threshold=0.02",),
)
"""To try the demo: its models have learned little, and it shows the steps and not their gains."""
