from __future__ import annotations

import io
import os

import pytest

from rlhf.tracking.console import Console, format_number, format_seconds, plain_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_lines_come_seconds_apart_and_the_last_always() -> None:
    out, clock = io.StringIO(), Clock()
    with Console(out, clock=clock).stage("ppo", 10) as report:
        for step in range(1, 11):
            clock.now += 2.0
            report(step, {"score": step / 3, "kl": 1.25})
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/10", "4/10", "7/10", "10/10"]
    assert lines[0] == "ppo  1/10  score 0.3333  kl 1.25  0:02 passed, 0:18 left"
    assert lines[-1].endswith("0:20 passed, 0:00 left")


def test_on_a_terminal_a_bar_shows_the_numbers() -> None:
    out = Terminal()
    with Console(out).stage("sft [x]", 4) as report:
        report(4, {"loss": 0.5, "note": "[red]a"})
    text = out.getvalue()
    assert "sft [x]" in text
    assert "4/4" in text
    assert "loss 0.5  note [red]a" in text


def test_bars_can_be_switched_off_on_a_terminal() -> None:
    out = Terminal()
    with Console(out, progress=False).stage("sft", 2) as report:
        report(2, {"loss": 0.5})
    assert out.getvalue() == "sft  2/2  loss 0.5  0:00 passed, 0:00 left\n"


def test_a_notice_is_one_line_in_a_log_and_above_the_bar_of_a_terminal() -> None:
    text = f"policy rank 0 died:\x1b[2J {'a long cause ' * 20}end"
    line = text.replace("\x1b", "")
    out = io.StringIO()
    Console(out).notice(text)
    assert out.getvalue() == f"{line}\n"
    terminal = Terminal()
    console = Console(terminal)
    with console.stage("ppo", 2) as report:
        report(1, {})
        console.notice(text)
    assert f"{line}\n" in terminal.getvalue()
    assert terminal.getvalue().index(line) < terminal.getvalue().rindex("1/2"), "the bar is drawn again below it"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_run_goes_on_when_nobody_can_read_its_progress(is_terminal: bool) -> None:
    """The reader of a pipe has gone, or the terminal: what is written later, and at the end, is discarded."""
    reader, writer = os.openpty() if is_terminal else os.pipe()
    with os.fdopen(writer, "w", buffering=1) as out:
        console = Console(out)
        assert console._bars == is_terminal
        with console.stage("sft", 3) as report:
            report(1, {"loss": 0.5})
            os.close(reader)
            for step in (2, 3):
                report(step, {"loss": 0.5})
            console.notice("policy rank 0 died")
        console.summary("sft", {"loss": 0.5})


def test_what_a_model_wrote_cannot_touch_the_screen() -> None:
    out = io.StringIO()
    console = Console(out)
    console.side_by_side("Where [bold]to[/bold]?", "a\x1b[2Jb [link=x]y[/link]", "rev\u202eersed [/]")
    console.print("[red]\x07 plain")
    text = out.getvalue()
    assert "\x1b" not in text
    assert "\u202e" not in text
    for kept in ("Where [bold]to[/bold]?", "a[2Jb [link=x]y[/link]", "reversed [/]", "[red] plain"):
        assert kept in text


def test_before_and_after_stand_in_one_row() -> None:
    out = io.StringIO()
    Console(out).side_by_side("prompt", "old answer", "new answer")
    row = next(line for line in out.getvalue().splitlines() if "old answer" in line)
    assert row.index("old answer") < row.index("new answer")


def test_a_summary_lists_names_and_values() -> None:
    out = io.StringIO()
    Console(out).summary("Done", {"win rate": 0.72249, "steps": 60, "model": "runs/demo/ppo/model"})
    rows = [line.strip("│ ").split("│") for line in out.getvalue().splitlines() if "│" in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells == [["win rate", "0.7225"], ["steps", "60"], ["model", "runs/demo/ppo/model"]]


def test_formats() -> None:
    assert [format_number(value) for value in (0.000012345, 3, 1234.5678, "x")] == ["1.234e-05", "3", "1235", "x"]
    assert [format_seconds(value) for value in (0.4, 61, 3723)] == ["0:00", "1:01", "1:02:03"]
    assert plain_text("tab\tline\nbell\x07 esc\x1b c1\x9b end") == "tab\tline\nbell esc c1 end"


def test_a_title_is_not_wrapped_to_the_width_of_its_table() -> None:
    out = io.StringIO()
    Console(out).summary("prompts to find a difference of 0.1", {"arm": "181"})
    assert out.getvalue().splitlines()[0] == "prompts to find a difference of 0.1"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_within_a_stage_no_other_one_is_shown(stream: type[io.StringIO]) -> None:
    out = stream()
    console = Console(out)
    with console.stage("PPO", 2) as report, console.stage("Answers", 7) as inner:
        inner(7, {})
        report(2, {})
    with console.stage("Answers", 9) as later:
        later(9, {})
    assert "7/7" not in out.getvalue() and "2/2" in out.getvalue() and "9/9" in out.getvalue()
