"""Which attempts are repeated: those that get further, and a few in a row that do not."""

from __future__ import annotations

from rlhf.recovery.requeue import Attempts


def test_attempts_without_a_further_step_are_counted_from_their_start() -> None:
    attempts = Attempts()
    for number in (1, 2, 3):
        attempts = attempts.begin({"ppo": 0})
        assert attempts.fruitless == number and attempts.may_continue(3)
    assert not attempts.begin({"ppo": 0}).may_continue(3), "the fourth ends as the three repeated ones did"
    assert not Attempts().begin({}).may_continue(0), "nothing is repeated"


def test_a_further_step_begins_the_count_anew() -> None:
    attempts = Attempts().begin({}).begin({}).observe({"sft": 1})
    assert attempts.fruitless == 0
    assert attempts.begin({"sft": 1}).fruitless == 1


def test_steps_that_are_repeated_after_a_checkpoint_are_no_further_ones() -> None:
    attempts = Attempts().begin({}).observe({"ppo": 12}).begin({"ppo": 10})
    assert attempts.observe({"ppo": 12}).fruitless == 1
    assert attempts.observe({"ppo": 13}).fruitless == 0
    assert attempts.furthest == {"ppo": 12}
    assert attempts.observe({"sft": 1, "ppo": 10}).furthest == {"sft": 1, "ppo": 12}


def test_a_stage_that_was_finished_or_begun_is_progress() -> None:
    attempts = Attempts().begin({}).observe({"sft": 5}).begin({"sft": 5})
    assert attempts.observe({"sft": 6}).fruitless == 0, "it is finished: one more than its steps"
    further = attempts.observe({"sft": 5, "ppo": 1})
    assert (further.fruitless, further.furthest) == (0, {"sft": 5, "ppo": 1})
