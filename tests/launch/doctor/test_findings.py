"""A check that crashes, or whose facts are missing, is a failed row with its reason."""

from __future__ import annotations

from launch.doctor.findings import Fault, Finding, described, gib, ok, run_check
from rlhf.errors import MachineryError


def of_number(number: int, divisor: int) -> Finding:
    """A check that crashes on some facts."""
    return ok(str(number // divisor))


def test_a_sound_check_says_what_it_says() -> None:
    assert run_check(of_number, 6, 3) == ok("2")


def test_a_check_that_crashes_is_a_failed_row() -> None:
    found = run_check(of_number, 6, 0)
    assert (found.status, found.found) == (
        "failed",
        "the check itself failed: ZeroDivisionError: integer division or modulo by zero",
    )
    assert found.fix


def test_a_fact_that_was_not_had_fails_every_check_on_it() -> None:
    found = run_check(of_number, 6, Fault(reason="no answer within 10 s"))
    assert (found.status, found.found) == ("failed", "could not be checked: no answer within 10 s")


def test_bytes_as_people_read_them() -> None:
    assert [gib(size) for size in (0, 64 * 2**20, 2**30, 85 * 2**30)] == ["0 MiB", "64 MiB", "1.0 GiB", "85.0 GiB"]


def test_a_message_for_the_user_has_no_class_name_and_ends_between_words() -> None:
    text = described(MachineryError(f"no cluster at auto: {'words ' * 60}"))
    assert text.startswith("no cluster at auto: words") and text.endswith("words...") and len(text) <= 240
    assert described(ValueError("odd")) == "ValueError: odd"
