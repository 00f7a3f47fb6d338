"""``rlhf submit RECIPE``: submits a run as a job to a Ray cluster, follows it, or stops it. See docs/security.md."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import ADDRESS, Address, OptionalRecipePath, Overrides, Run
from rlhf.environment import SECRET, forwarded_to_job
from rlhf.errors import UserError

if TYPE_CHECKING:
    from launch.jobs import Jobs
    from rlhf.config.schema import Recipe, Stage

PURPOSE = "run a recipe as a job on a Ray cluster"
EXAMPLE = "rlhf submit recipes/quickstart.yaml ppo.steps=20 --command pipeline"

DETACHED = 130
"""Exit code after Ctrl-C, which detaches from the job."""


def run(
    *,
    recipe: OptionalRecipePath = None,
    overrides: Overrides,
    command: Annotated[Run, typer.Option(help="what to run")] = "pipeline",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="do not follow the submitted job")] = False,
    env: Annotated[
        list[str],
        typer.Option(default_factory=list, show_default=False, metavar="NAME", help="pass this variable on to the job"),
    ],
    follow: Annotated[
        str | None, typer.Option(metavar="JOB", help="show the log of a job, and exit with its exit code")
    ] = None,
    stop: Annotated[str | None, typer.Option(metavar="JOB", help="ask a job to commit a checkpoint and end")] = None,
    list_jobs: Annotated[bool, typer.Option("--list", help="list the jobs")] = False,
    address: Address = ADDRESS,
) -> int:
    """Submit, follow, stop or list; returns the exit code of the followed job.

    Raises:
        UserError: the recipe, the files that it names, or the token is wrong.
        MachineryError: the cluster does not answer, or the job was killed.
    """
    if sum(map(bool, (recipe, follow, stop, list_jobs))) != 1:
        raise UserError("give one of RECIPE, --follow JOB, --stop JOB and --list", fix=f"for example {EXAMPLE}")
    job = _submit(recipe, overrides, command, env, address) if recipe else follow
    if recipe and no_wait:
        return 0
    from launch.jobs import Jobs

    jobs = Jobs(address)
    if job:
        return _follow(jobs, job)
    return _stop(jobs, stop) if stop else _list(jobs)


def _submit(path: str, overrides: Sequence[str], command: Run, variables: Sequence[str], address: str) -> str:
    """Submit a job; returns its name."""
    from launch.upload import RECIPE, stage

    recipe = checked(path, overrides, command)
    environment = passed_on(variables, os.environ)
    with tempfile.TemporaryDirectory() as folder:
        files = stage(recipe, Path.cwd(), Path(folder))
        from launch.jobs import Jobs

        job = f"{recipe.name}-{uuid.uuid4().hex[:6]}"
        run_folder = f"{recipe.runs_dir}/{recipe.name}"
        Jobs(address).submit(
            job=job,
            entrypoint=f"exec python -m launch.job {command} {RECIPE}",
            files=Path(folder),
            environment=environment,
            metadata={"command": command, "recipe": Path(path).name, "run": run_folder},
            grace_seconds=recipe.checkpoint.grace_seconds,
        )
    print(f"{job}: rlhf {command} with {', '.join(map(str, files)) or 'no files'}; the run's folder on the cluster")
    print(f"is {run_folder}; variables: {', '.join(sorted(environment)) or 'none'}\n{_usage(address, job)}", flush=True)
    return job


def checked(path: str, overrides: Sequence[str], command: Stage) -> Recipe:
    """The recipe as a job runs it, if it can work on some cluster.

        Files on the nodes' storage and the nodes themselves are checked by the job, at its start.

    Raises:
        UserError: lists every problem found.
    """
    from launch.upload import is_elsewhere
    from rlhf.config.load import load_recipe
    from rlhf.placement.machine import Machine
    from rlhf.validate import validate

    recipe = load_recipe(path, overrides)
    anything = Machine(gpus=10**6, cpus=10**6)
    validate(load_recipe(path, [*overrides, *_placeholders(recipe)]), command, anything)
    runs_dir = recipe.runs_dir if is_elsewhere(recipe.runs_dir) else f"~/{recipe.runs_dir}"
    return load_recipe(path, [*overrides, "placement.ray_address=auto", f"runs_dir={runs_dir}"])


def _placeholders(recipe: Recipe) -> list[str]:
    """Placeholder settings for files on the nodes' storage, which this machine need not have."""
    from launch.upload import is_elsewhere, named_functions, named_paths

    unseen = [
        key for key, path in named_paths(recipe).items() if is_elsewhere(path) and not Path(path).expanduser().exists()
    ]
    functions = [
        key
        for key, source in named_functions(recipe).items()
        if is_elsewhere(source) and not Path(source).expanduser().exists()
    ]
    no_name = ("model.chat_template", "reward.ceiling")  # files only, never hub names
    return [f"{key}={'null' if key in no_name else 'elsewhere'}" for key in unseen] + [
        f"{key}=elsewhere:function" for key in functions
    ]


def passed_on(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to pass to a job: those that every process of a run gets, and ``names``.

    Everyone who can list the cluster's jobs can read them.

    Raises:
        UserError: one is not set here, or may be a secret.
    """
    for name in names:
        if SECRET.search(name):
            raise UserError(
                f"--env {name} may be a secret",
                "everyone who can list the cluster's jobs can read a job's variables, and Ray writes them to its logs",
                f"export {name} on the nodes before `launch/head.sh` and `launch/worker.sh`, or log in there",
            )
        if name not in environment:
            raise UserError(f"--env {name} is not set here", fix=f"export {name}=...")
    return {**forwarded_to_job(environment), **{name: environment[name] for name in names}}


def _follow(jobs: Jobs, job: str) -> int:
    try:
        return jobs.follow(job, _show)
    except KeyboardInterrupt:
        print(f"\ndetached: {job} continues.\n{_usage(jobs.address, job)}", flush=True)
        return DETACHED


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _usage(address: str, job: str) -> str:
    at = "" if address == ADDRESS else f" --address {shlex.quote(address)}"
    return f"  follow: rlhf submit --follow {job}{at}\n  stop:   rlhf submit --stop {job}{at}"


def _stop(jobs: Jobs, job: str) -> int:
    from launch.jobs import STOP_SPARE_SECONDS, STOP_WAIT

    info = jobs.info(job)
    if info.status.is_terminal():
        print(f"{job} had ended already: {info.status.value.lower()}")
        return 0
    wait = float((info.runtime_env or {}).get("env_vars", {}).get(STOP_WAIT, 0)) + STOP_SPARE_SECONDS
    started = time.monotonic()
    code = jobs.stop(job, wait)
    print(f"{job} ended with exit code {code} after {time.monotonic() - started:.1f} s: {jobs.last_word(job)}")
    return 0


def _list(jobs: Jobs) -> int:
    from rlhf.tracking.console import one_line

    rows = [("job", "state", "started", "run's folder")]
    for job in jobs.all():
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime((job.start_time or 0) / 1000))
        folder = (job.metadata or {}).get("run", "")
        rows.append((one_line(job.submission_id), job.status.value.lower(), started, one_line(folder)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0
