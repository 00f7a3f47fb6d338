"""Tests of the restart budget and the backoff, computed by hand."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rlhf.recovery.budget import Budget, History
from rlhf.recovery.diagnosis import Cause
from rlhf.recovery.incident import Incident

BUDGET = Budget(restarts=20, device_errors=5, backoff_seconds=0.5, backoff_limit_seconds=6.0)


def death(role: str = "rollout", step: int = 4, lost: float = 12.4, **fields: Any) -> Incident:
    return Incident(
        when=1_700_000_000.0 + step,
        member=f"{role} engine 1",
        role=role,
        step=step,
        **{"phase": "rollout", "kind": "died", "cause": "it was killed\nby a signal", **fields},
        what="end of file",
        seconds_lost=lost,
    )


def budget(restarts: int, device_errors: int = 5) -> Budget:
    return Budget(restarts=restarts, device_errors=device_errors, backoff_seconds=1, backoff_limit_seconds=9)


def test_the_wait_doubles_with_each_death_in_a_row_up_to_the_limit() -> None:
    history, waits = History(), []
    for _ in range(7):
        history = history.after(death())
        waits.append(BUDGET.wait(history, "rollout"))
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, 6.0, 6.0]


def test_one_more_death_than_the_budget_is_one_too_many() -> None:
    history, spent = History(), []
    for _ in range(4):
        history = history.after(death())
        spent.append(budget(2).spent(history))
    assert spent == [None, None, "more than recovery.restarts = 2 restarts", "more than recovery.restarts = 2 restarts"]
    assert budget(0).spent(History().after(death())) is not None


def test_the_budget_is_shared_and_the_wait_is_each_role_s_own() -> None:
    history = History().after(death("rollout")).after(death("rollout")).after(death("policy"))
    assert BUDGET.wait(history, "policy") == 0.0
    assert BUDGET.wait(history, "rollout") == 0.5
    assert budget(2).spent(history) is not None and budget(3).spent(history) is None


def test_what_fails_together_is_one_restart_and_each_role_s_own_row() -> None:
    history = History().after(death("rollout"), death("policy")).after(death("policy"))
    assert (history.restarts, len(history.incidents)) == (2, 3)
    assert [BUDGET.wait(history, role) for role in ("rollout", "policy")] == [0.0, 0.5]


def test_what_is_found_to_have_failed_with_the_last_incident_costs_nothing_more() -> None:
    history = History().after(death("rollout")).after(death("rollout"), death("policy"), is_continued=True)
    assert (history.restarts, len(history.incidents)) == (1, 3)
    assert dict(history.in_a_row) == {"rollout": 1, "policy": 1}


def test_errors_of_devices_have_a_budget_of_their_own() -> None:
    history = History()
    for _ in range(3):
        history = history.after(death("policy", cause=Cause.GPU_ECC, kind="failed"))
    assert (history.restarts, history.device_errors) == (0, 3)
    assert budget(0, device_errors=3).spent(history) is None
    assert budget(9, device_errors=2).spent(history) == "more than recovery.device_errors = 2 errors of devices"
    assert history.after(death(), death("policy", cause=Cause.NCCL)).restarts == 1, "a death beside it is a restart"


def test_only_a_whole_step_ends_a_row() -> None:
    twice = History().after(death()).after(death())
    assert BUDGET.wait(twice.after_step(4).after(death()), "rollout") == 1.0  # it was not there from the beginning
    assert BUDGET.wait(twice.after_step(4).after_step(5).after(death()), "rollout") == 0.0
    dies_in_every_step = twice.after_step(4).after(death()).after_step(5).after(death())
    assert BUDGET.wait(dies_in_every_step, "rollout") == 2.0


def test_each_ten_new_steps_give_one_restart_back() -> None:
    history = History().after(death()).after(death()).after(death("policy", cause=Cause.NCCL))
    left = []
    for step in range(30):
        history = history.after_step(step, 10)
        left.append((history.restarts, history.device_errors))
    assert left[8:10] == [(2, 1), (1, 0)] and left[18:20] == [(1, 0), (0, 0)] and left[-1] == (0, 0), "never below 0"
    assert history.after(death()).restarts == 1 and len(history.incidents) == 3, "the history stays"


def test_repeated_steps_and_zero_give_nothing_back() -> None:
    history = History(furthest=9).after(death())
    for step in (*range(10), *range(10), *range(10)):
        history = history.after_step(step, 3)
    assert history.restarts == 1
    for step in range(10, 90):
        history = history.after_step(step, 0)
    assert history.restarts == 1


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 5))
def test_a_run_that_fails_at_one_step_for_ever_ends(goes_back_to: list[int], every: int) -> None:
    """Each time it goes back some steps and dies in the 31st again: at most 31 / every restarts are given back."""
    history = History()
    for first in [0, *goes_back_to]:
        for step in range(first, 31):
            history = history.after_step(step, every)
        history = history.after(death())
    assert history.restarts >= len(goes_back_to) + 1


def test_a_role_that_is_short_of_memory_in_one_phase_again_repeats_itself() -> None:
    short = {"cause": Cause.GPU_MEMORY, "kind": "failed"}
    first = death("policy", phase="update", **short)
    history = History().after(first)
    assert history.repeats(death("policy", phase="update", step=5, **short))
    assert not history.repeats(death("policy", phase="score", **short))
    assert not history.repeats(death("critic", phase="update", **short))
    assert not history.repeats(death("policy", phase="update")), "it was killed this time"
    assert history.after_step(4).after(first).after_step(4).repeats(first), "a repeated step is no progress"
    assert not history.after_step(4).repeats(first), "it went on, and may do so again"


def test_a_process_that_the_kernel_killed_for_memory_asked_for_none() -> None:
    """Another process may have taken it."""
    assert not death(cause=Cause.HOST_MEMORY, kind="died").is_memory_error
    assert death(cause=Cause.HOST_MEMORY, kind="failed").is_memory_error


def test_a_thousand_deaths_are_no_overflow() -> None:
    history = History(incidents=(), in_a_row={"rollout": 5000})
    assert BUDGET.wait(history, "rollout") == 6.0


def test_the_history_is_one_line_an_incident() -> None:
    history = History().after(death()).after(death("policy", step=5, lost=0.0))
    assert history.text().splitlines() == [
        "2023-11-14 22:13:24 UTC rollout engine 1 died during rollout of step 4: it was killed by a signal; 12 s lost",
        "2023-11-14 22:13:25 UTC policy engine 1 died during rollout of step 5: it was killed by a signal",
    ]


def test_a_replacement_closes_the_incident_that_is_open_and_no_other() -> None:
    history = History().after(death(lost=0.0)).closed("rollout engine 1", 9.0)
    assert [incident.seconds_lost for incident in history.incidents] == [9.0]
    history = history.closed("rollout engine 1", 70.0)  # it was ended with a peer, whose incident that is
    assert [incident.seconds_lost for incident in history.incidents] == [9.0]
