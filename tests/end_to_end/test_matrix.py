"""A fixed part of the matrix of faults (``matrix``, which ``make chaos`` runs whole), in two runs.

In one, with ZeRO 1 and rollouts of the current weights, roles are killed inside their work of each phase. In the other,
with ZeRO 3 and a staleness of 1, the policy has device errors in every phase, and the critic is lost with another role.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.end_to_end.campaign import Result, Setting, make_data, run_plan
from tests.end_to_end.fault_plan import DEVICE, INSIDE, KILL, MEMORY, PHASES, SAVE, START, Aim

STEPS, TRAINED_STEPS = 11, 16
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
TRAINED = [
    Aim(role=role, phase=phase, fault=fault)
    for role, fault in (("policy", DEVICE), ("critic", MEMORY))
    for phase in PHASES
    if phase not in (START, SAVE)
]


def test_it_has_every_phase_in_which_a_role_works() -> None:
    assert set(KILLED) == {(role, phase) for role in INSIDE for phase in INSIDE[role] if phase != START}


def results_of(folder: Path, plan: Sequence[Aim], steps: int, setting: Setting) -> dict[Aim, Result]:
    make_data(folder)
    return {result.aim: result for result in run_plan(folder, "matrix", plan, steps, setting, seconds=600).results()}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[Aim, Result]:
    return results_of(tmp_path_factory.mktemp("killed"), PLAN, STEPS, Setting())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[Aim, Result]:
    setting = Setting(staleness=1, zero_stage=3)
    return results_of(tmp_path_factory.mktemp("trained"), TRAINED, TRAINED_STEPS, setting)


def name_of(aim: Aim) -> str:
    return f"{aim.role}-{aim.phase}-{aim.fault}"


@pytest.mark.parametrize("aim", PLAN, ids=name_of)
def test_the_run_recovers(aim: Aim, killed: dict[Aim, Result]) -> None:
    """Within the command; the run ends well, with every step and sample once."""
    assert (killed[aim].why, killed[aim].code) == ("", 0)
    assert killed[aim].seconds is not None


@pytest.mark.parametrize("aim", TRAINED, ids=name_of)
def test_the_run_recovers_with_partitioned_weights_and_older_rollouts(aim: Aim, trained: dict[Aim, Result]) -> None:
    assert (trained[aim].why, trained[aim].code) == ("", 0)
