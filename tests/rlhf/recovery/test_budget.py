"""Tests of the restart budget and the backoff, computed by hand."""

from __future__ import annotations

from rlhf.recovery.budget import Budget, History
from rlhf.recovery.incident import Incident

BUDGET = Budget(restarts=20, backoff_seconds=0.5, backoff_limit_seconds=6.0)


def death(role: str = "rollout", step: int = 4, lost: float = 12.4) -> Incident:
    return Incident(
        when=1_700_000_000.0 + step,
        member=f"{role} engine 1",
        role=role,
        step=step,
        phase="rollout",
        kind="died",
        what="end of file",
        cause="it was killed\nby a signal",
        seconds_lost=lost,
    )


def waits(history: History, times: int, budget: Budget = BUDGET) -> list[float | None]:
    """The waits of so many deaths in a row."""
    found = []
    for _ in range(times):
        history = history.after(death())
        found.append(budget.wait(history, "rollout"))
    return found


def test_the_wait_doubles_with_each_death_in_a_row_up_to_the_limit() -> None:
    assert waits(History(), 7) == [0.0, 0.5, 1.0, 2.0, 4.0, 6.0, 6.0]


def test_one_more_death_than_the_budget_is_one_too_many() -> None:
    assert waits(History(), 4, Budget(restarts=2, backoff_seconds=1, backoff_limit_seconds=9)) == [0.0, 1.0, None, None]
    assert waits(History(), 1, Budget(restarts=0, backoff_seconds=1, backoff_limit_seconds=9)) == [None]


def test_the_budget_is_shared_and_the_wait_is_each_role_s_own() -> None:
    history = History().after(death("rollout")).after(death("rollout")).after(death("policy"))
    assert BUDGET.wait(history, "policy") == 0.0
    assert BUDGET.wait(history, "rollout") == 0.5
    assert Budget(restarts=2, backoff_seconds=1, backoff_limit_seconds=9).wait(history, "policy") is None


def test_what_fails_together_is_one_restart_and_each_role_s_own_row() -> None:
    history = History().after(death("rollout"), death("policy")).after(death("policy"))
    assert (history.restarts, len(history.incidents)) == (2, 3)
    assert [BUDGET.wait(history, role) for role in ("rollout", "policy")] == [0.0, 0.5]
    assert Budget(restarts=2, backoff_seconds=1, backoff_limit_seconds=9).wait(history, "rollout") == 0.0
    assert Budget(restarts=1, backoff_seconds=1, backoff_limit_seconds=9).wait(history, "rollout") is None


def test_only_a_whole_step_ends_a_row() -> None:
    twice = History().after(death()).after(death())
    assert BUDGET.wait(twice.after_step().after(death()), "rollout") == 1.0  # it was not there from the beginning
    assert BUDGET.wait(twice.after_step().after_step().after(death()), "rollout") == 0.0
    dies_in_every_step = twice.after_step().after(death()).after_step().after(death())
    assert BUDGET.wait(dies_in_every_step, "rollout") == 2.0


def test_steps_served_give_nothing_back_to_the_budget() -> None:
    history = History().after(death()).after_step().after_step().after(death())
    assert Budget(restarts=1, backoff_seconds=1, backoff_limit_seconds=9).wait(history, "rollout") is None


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
