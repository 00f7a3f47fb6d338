"""One attempt of a command under a scheduler: which ends are repeated, how often, and what is kept between attempts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import launch.attempt
from launch.attempt import REPEAT, main
from launch.cli import Ended
from rlhf.errors import CanaryError, LostError, MachineryError, NonFiniteError, RLHFError, Stopped, UserError
from rlhf.recovery.leaving import FINAL_CODE
from rlhf.storage.jsonl import append_line
from tests.end_to_end.small import RECIPE, ROOT


class Job:
    """A job whose command is replaced by a function that completes steps and returns how it ended."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.file, self._monkeypatch = folder, folder / "job" / "attempts.json", monkeypatch
        self.runs = 0

    def step(self, stage: str, step: int) -> None:
        path = self.folder / "runs" / "j" / stage
        path.mkdir(parents=True, exist_ok=True)
        append_line(path / "metrics.jsonl", {"step": step})

    def attempt(self, ended: Ended, work: Callable[[], None] = lambda: None, *settings: str) -> int:
        def run(words: list[str]) -> Ended:
            self.runs += 1
            work()
            return ended

        self._monkeypatch.setattr(launch.attempt, "run_command", run)
        words = ["ppo", str(RECIPE), f"runs_dir={self.folder / 'runs'}", "name=j", *settings]
        return main([str(self.file), *words])


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(FINAL_CODE, "of", FINAL_CODE.of)  # restored at the end
    return Job(tmp_path, monkeypatch)


def ended(error: RLHFError) -> Ended:
    return Ended(error.exit_code, error.may_pass)


@pytest.mark.parametrize("error", [MachineryError("x"), LostError("x"), Stopped("SIGTERM")])
def test_a_cause_that_may_pass_is_repeated(job: Job, error: RLHFError) -> None:
    assert job.attempt(ended(error)) == REPEAT
    assert json.loads(job.file.read_text()) == {"furthest": {}, "fruitless": 1, "final": None}


@pytest.mark.parametrize("error", [UserError("x"), CanaryError("x"), NonFiniteError("x")])
def test_what_would_come_again_is_final(job: Job, error: RLHFError) -> None:
    assert job.attempt(ended(MachineryError("x"))) == REPEAT
    assert job.attempt(ended(error)) == error.exit_code
    assert not job.file.exists(), "a person who submits it again begins anew"


def test_success_is_final(job: Job) -> None:
    assert job.attempt(Ended(0)) == 0
    assert not job.file.exists()


def test_attempts_without_a_further_step_end(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    codes = [job.attempt(Ended(3, may_pass=True), lambda: None, "recovery.requeues=2") for _ in range(3)]
    assert codes == [REPEAT, REPEAT, 3]
    assert "3 attempts in a row completed no further step, and recovery.requeues = 2" in capsys.readouterr().err
    assert not job.file.exists()


def test_a_further_step_begins_the_count_anew(job: Job) -> None:
    steps = [0, 0, 1, 1, 1]  # of each attempt, the last one
    codes = [
        job.attempt(Ended(3, may_pass=True), lambda step=step: job.step("ppo", step), "recovery.requeues=1")  # type: ignore[misc]
        for step in steps
    ]
    assert codes == [REPEAT, REPEAT, REPEAT, REPEAT, 3]


def test_an_attempt_that_was_killed_counts(job: Job) -> None:
    """It is counted at its start; one too many is not run at all."""

    def die() -> None:
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            job.attempt(Ended(0), die, "recovery.requeues=2")
    assert job.attempt(Ended(0), die, "recovery.requeues=2") == 3
    assert job.runs == 3


def test_a_stage_that_was_moved_aside_is_no_progress(job: Job) -> None:
    """An attempt without a checkpoint is renamed, and its steps are done again."""
    codes = list[int]()
    for number in range(3):
        codes.append(
            job.attempt(
                Ended(3, may_pass=True),
                lambda number=number: job.step(f"ppo.interrupted-{number}", 5),  # type: ignore[misc]
                "recovery.requeues=1",
            )
        )
    assert codes == [REPEAT, 3, REPEAT]


def test_a_wrong_recipe_is_reported_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "attempts.json"), "ppo", str(RECIPE), "ppo.stepps=3"]) == 2
    assert "stepps" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_as_a_rayjob_it_stops_its_job_after_a_final_failure_only(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = list[int]()
    monkeypatch.setattr(launch.attempt, "stop_own_job", lambda: stopped.append(1) or True)
    for ended_as, code, stops in ((Ended(0), 0, 0), (Ended(3, True), REPEAT, 0), (Ended(2), 2, 1)):
        monkeypatch.setattr(launch.attempt, "run_command", lambda words, result=ended_as: result)
        assert main(["--job", str(job.file), "ppo", str(RECIPE)]) == code
        assert len(stopped) == stops
        assert f"the command ended with exit code {code}" in capsys.readouterr().out


@pytest.mark.parametrize("first", [Ended(3), Ended(2), Ended(3, may_pass=True)], ids=["canary", "input", "no steps"])
def test_a_final_failure_of_which_kuberay_does_not_know_is_not_run_again(
    first: Ended, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray does not answer, so that KubeRay counts the job as failed, and repeats it: once, for nothing."""
    runs, answers = list[int](), False

    def stop() -> bool:
        return answers

    monkeypatch.setattr(launch.attempt, "stop_own_job", stop)
    monkeypatch.setattr(launch.attempt, "run_command", lambda words: runs.append(1) or first)
    words = ["--job", str(job.file), "ppo", str(RECIPE), "recovery.requeues=0", f"runs_dir={job.folder}"]
    assert [main(words), main(words)] == [first.code, first.code] and len(runs) == 1
    assert f"not run: the attempt before ended with exit code {first.code}" in capsys.readouterr().err
    answers = True
    assert main(words) == first.code and len(runs) == 1
    assert not job.file.exists(), "KubeRay knows: a person who submits it again begins anew"
    main(words)
    assert len(runs) == 2


NOBODY = "import launch.attempt\nlaunch.attempt.stop_own_job = lambda: False\n"
"""A Ray that does not answer."""
ENDS = """
import atexit, sys, time
import launch.attempt
from launch.cli import Ended
from rlhf.errors import ClusterError
from rlhf.recovery.last_resort import LastResort
from rlhf.recovery.leaving import leave

def run(words):
    if sys.argv[1] == "at its end":
        atexit.register(leave, 3)
        return Ended(3, may_pass=True)
    LastResort().end_within(0.1, lambda: ClusterError("the raylet ended"))
    time.sleep(60)

launch.attempt.run_command = run
sys.exit(launch.attempt.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("when", ["at its end", "while its main thread waits"])
def test_a_process_that_leaves_at_once_has_the_attempts_exit_code(when: str, tmp_path: Path) -> None:
    """After a failure of Ray, which could end the process too, and at the end of a grace period."""
    for code in (REPEAT, 3):
        settings = [f"runs_dir={tmp_path / 'runs'}", "name=j", "recovery.requeues=1"]
        words = [when, str(tmp_path / "attempts.json"), "ppo", str(RECIPE), *settings]
        done = subprocess.run(
            [sys.executable, "-c", ENDS, *words], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code, done.stderr[-2000:]
    assert "not repeated: 2 attempts in a row" in done.stderr


def test_a_job_that_gives_up_where_it_has_to_leave_at_once_is_not_run_again(tmp_path: Path) -> None:
    """It has no time to have Ray stop it, so that KubeRay repeats it; not from the beginning of the count."""
    file = tmp_path / "attempts.json"
    settings = [f"runs_dir={tmp_path / 'runs'}", "name=j", "recovery.requeues=0"]
    words = ["while its main thread waits", "--job", str(file), "ppo", str(RECIPE), *settings]
    for reason in ("not repeated: 1 attempts in a row", "not run: the attempt before ended with exit code 3"):
        done = subprocess.run(
            [sys.executable, "-c", ENDS.replace("import launch.attempt\n", NOBODY), *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 3 and reason in done.stderr, done.stderr[-2000:]


@pytest.mark.parametrize("words", [[], ["--job"], ["file"]])
def test_without_a_command_it_says_what_it_needs(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "FILE COMMAND RECIPE" in capsys.readouterr().err


def test_a_count_that_cannot_be_written_does_not_keep_the_run_from_running(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(launch.attempt, "write_atomically", full)
    assert job.attempt(Ended(0)) == 0 and job.runs == 1
    assert "attempts.json cannot be written, and this attempt is not counted: No space left" in capsys.readouterr().err
