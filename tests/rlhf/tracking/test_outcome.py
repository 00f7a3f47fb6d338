from __future__ import annotations

import pytest

from rlhf.errors import CanaryError, Stopped, UserError
from rlhf.tracking.outcome import outcome, reason

HISTORY = [
    {"step": 0, "objective/scores": 1.0, "objective/kl": 0.0, "health/restarts": 0.0, "perf/goodput": 0.5},
    {"step": 1, "objective/scores": 3.0, "objective/kl": 2.0, "health/restarts": 1.0, "eval/loss": 0.7},
    {"step": 2, "objective/scores": 2.0, "objective/kl": None, "eval/loss": 0.9},
]


def test_best_and_last_values() -> None:
    assert outcome(HISTORY, 0, "done") == {
        "steps": 3,
        "best_score": 3.0,
        "best_score_step": 1,
        "best_eval_loss": 0.7,
        "best_eval_loss_step": 1,
        "final_score": 2.0,
        "final_kl": 2.0,
        "goodput": 0.5,
        "restarts": 1.0,
        "exit_code": 0,
        "exit_reason": "done",
    }


def test_a_stage_without_a_step_still_reports_why_it_ended() -> None:
    assert outcome([], 3, "why") == {"exit_code": 3, "exit_reason": "why"}


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (None, 0, "done"),
        (Stopped("SIGTERM"), 75, "Stopped: stopped on request (SIGTERM)"),
        (UserError("what", "why"), 2, "UserError: what"),
        (CanaryError("kl", "much"), 3, "CanaryError: "),
        (KeyboardInterrupt(), 1, "KeyboardInterrupt"),
        (ValueError("one\ntwo"), 1, "ValueError: one"),
    ],
)
def test_reason(error: BaseException | None, code: int, text: str) -> None:
    found, message = reason(error)
    assert found == code
    assert message.startswith(text)
    assert "\n" not in message


def test_no_secret_is_recorded() -> None:
    assert outcome([], 3, "no answer from http://a:b@host/")["exit_reason"] == "no answer from http://***@host/"
