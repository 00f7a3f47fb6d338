"""A fixed part of the matrix of faults (``matrix``, which ``make chaos`` runs whole): roles are killed inside their
work of each phase, in one run, with ZeRO 1 and rollouts of the current weights."""

from __future__ import annotations

import pytest

from tests.end_to_end.campaign import Result, Setting, make_data, run_plan
from tests.end_to_end.fault_plan import INSIDE, KILL, MEMORY, SAVE, START, Aim

STEPS = 11
KILLED = (
    ("engine", "rollout"),
    ("reward", "score"),
    ("reference", "score"),
    ("critic", "score"),
    ("policy", "score"),
    ("policy", "advantages"),
    ("critic", "update"),
    ("policy", "update"),
    ("engine", "publish"),
    ("policy", "publish"),
    ("judge", "judge"),
    ("engine", "judge"),
    ("policy", "snapshot"),
    ("critic", "snapshot"),
    ("policy", "restore"),
    ("critic", "restore"),
    ("policy", "save"),
)
"""In an order in which few steps suffice."""
PLAN = [
    Aim(role="reference", phase="advantages", fault=MEMORY),
    *(Aim(role=role, phase=phase, fault=KILL, step=STEPS - 1 if phase == SAVE else 1) for role, phase in KILLED),
]


def test_it_has_every_phase_in_which_a_role_works() -> None:
    assert set(KILLED) == {(role, phase) for role in INSIDE for phase in INSIDE[role] if phase != START}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Aim, Result]:
    folder = tmp_path_factory.mktemp("matrix")
    make_data(folder)
    return {result.aim: result for result in run_plan(folder, "matrix", PLAN, STEPS, Setting(), seconds=600).results()}


@pytest.mark.parametrize("aim", PLAN, ids=lambda aim: f"{aim.role}-{aim.phase}-{aim.fault}")
def test_the_run_recovers(aim: Aim, results: dict[Aim, Result]) -> None:
    """Within the command; the run ends well, with every step and sample once."""
    assert (results[aim].why, results[aim].code) == ("", 0)
    assert results[aim].seconds is not None
