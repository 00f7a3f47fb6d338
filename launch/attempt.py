"""One attempt at a command, for a scheduler that repeats it.

``python -m launch.attempt [--job] FILE COMMAND RECIPE ...`` runs ``rlhf COMMAND RECIPE ...``, and ends with exit code
75 if the command should be repeated: after a stop request, and after a failure that a repetition may mend. All other
exit codes are final. FILE, which outlives the attempt, counts attempts in a row without a further step: at most
``recovery.requeues`` of them are repeated. See docs/failures.md.

With ``--job`` it is the driver of a RayJob, which KubeRay repeats after every failure, but not after a stop. So after a
final failure it has Ray stop its job. Where it cannot, because the process has to end at once or Ray does not answer,
FILE keeps the failure: KubeRay's repetition then runs nothing, and stops its own job.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from launch.cli import Ended, parse, run_command
from launch.options import ADDRESS
from rlhf.errors import RLHFError, Stopped, UserError
from rlhf.recovery.leaving import FINAL_CODE
from rlhf.recovery.requeue import Attempts, Progress
from rlhf.storage.durable import write_atomically
from rlhf.storage.jsonl import read_lines

if TYPE_CHECKING:
    from rlhf.config.schema import Recipe

REPEAT = Stopped.exit_code
"""Exit code that asks the scheduler to repeat the command: EX_TEMPFAIL of sysexits.h."""
FAILED = 3
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable in which Ray gives a driver the name of its job."""
STOP_SECONDS = 60.0
"""Time for Ray to stop the job."""


def run(file: Path, words: Sequence[str], is_job: bool = False) -> int:
    """Run the command; returns its exit code, or ``REPEAT``.

    Args:
        is_job: a final failure is kept in ``file``, since a scheduler that is not told of it repeats the command.
    """
    if (final := _read(file).final) is not None:
        _report(f"not run: the attempt before ended with exit code {final}, which is final; see its log for the reason")
        return final
    recipe = _recipe(words)
    if recipe is None:
        return run_command(words).code  # which reports what is wrong
    before = _read(file).observe(completed(recipe))
    if not before.may_continue(recipe.recovery.requeues):
        return _give_up(file, before, recipe, is_job)
    _write(file, before.begin(completed(recipe)))
    FINAL_CODE.of = lambda code: _decide(Ended(code, may_pass=code in (FAILED, REPEAT)), file, recipe, is_job)
    code = _decide(run_command(words), file, recipe, is_job)
    FINAL_CODE.of = lambda _: code
    return code


def _decide(ended: Ended, file: Path, recipe: Recipe, is_job: bool) -> int:
    """The attempt's exit code, after the command has ended, or when it has to end at once (``leave``).

    What ends a command at once, a failure of Ray or the end of a grace period, may pass.
    """
    after = _read(file).observe(completed(recipe))
    if not ended.may_pass:
        return _end(file, ended.code, is_job)
    _write(file, after)
    if not after.may_continue(recipe.recovery.requeues):
        return _give_up(file, after, recipe, is_job)
    _report(
        f"exit code {ended.code}: a repetition may succeed; attempts in a row without a further step: {after.fruitless}"
    )
    return REPEAT


def _recipe(words: Sequence[str]) -> Recipe | None:
    """The command's recipe; None if the command line or the recipe is wrong."""
    from rlhf.config.load import load_recipe

    try:
        options = parse(words).options
        return load_recipe(options["recipe"], options["overrides"])
    except RLHFError:
        return None


def completed(recipe: Recipe) -> Progress:
    """Completed steps of each stage of a run, from its folder."""
    from rlhf.config.stages import DEPENDS_ON
    from rlhf.tracking.run_folder import RunFolder

    root = Path(recipe.runs_dir).expanduser() / recipe.name
    stages = [RunFolder(root, stage) for stage in DEPENDS_ON]
    return {run.stage: _steps(run.metrics) + (run.path / "done.json").exists() for run in stages}


def _steps(metrics: Path) -> int:
    try:
        rows = read_lines(metrics)
    except RLHFError:  # damaged, which the command reports
        return 0
    return int(rows[-1]["step"]) + 1 if rows else 0


def _read(file: Path) -> Attempts:
    """The attempts so far; none if the file is missing or damaged."""
    try:
        return Attempts(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Attempts()


def _write(file: Path, attempts: Attempts) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(asdict(attempts)) + "\n")
    except OSError as error:
        _report(f"{file} cannot be written, and this attempt is not counted: {error.strerror or error}")


def _end(file: Path, code: int, is_job: bool) -> int:
    """Forget the attempts: submitted again by a person, the job begins to count anew. Returns the exit code."""
    if is_job and code:
        _write(file, Attempts(final=code))
    else:
        file.unlink(missing_ok=True)
    return code


def _give_up(file: Path, attempts: Attempts, recipe: Recipe, is_job: bool) -> int:
    """Report the end."""
    _report(
        f"not repeated: {attempts.fruitless} attempts in a row completed no further step, and recovery.requeues = "
        f"{recipe.recovery.requeues}. The reasons are above, and in events.jsonl of the run's stages"
    )
    return _end(file, FAILED, is_job)


def _report(text: str) -> None:
    print(f"launch.attempt: {text}", file=sys.stderr, flush=True)


def stop_own_job(address: str = ADDRESS) -> bool:
    """Have Ray stop the job whose driver this process is, which then ends it; returns whether it was stopped."""
    from launch.jobs import Jobs

    job = json.loads(os.environ[JOB_CONFIG])["metadata"]["job_submission_id"]
    _report(f"stopping the Ray job {job}, so that KubeRay does not repeat it")
    try:
        Jobs(address).stop(job, STOP_SECONDS)
    except RLHFError as error:
        _report(f"that failed, and KubeRay may repeat the job, which then runs nothing: {error}")
        return False
    return True


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    is_job = list(arguments[:1]) == ["--job"]
    file, *words = [*(arguments[1:] if is_job else arguments)] or [""]
    if not words:
        _report("give the file that counts attempts, and a command: [--job] FILE COMMAND RECIPE ...")
        return UserError.exit_code
    code = run(Path(file), words, is_job)
    if is_job:
        from launch.jobs import ENDED

        print(f"{ENDED}{code}", flush=True)
        if code not in (0, REPEAT):
            Path(file).unlink(missing_ok=True)  # before the stop, which ends this process
            if not stop_own_job():
                _write(Path(file), Attempts(final=code))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
