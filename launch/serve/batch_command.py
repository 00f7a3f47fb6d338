"""``rlhf batch``: answers a file of requests, by a service or by a recipe's model, one output row for each row."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import OptionalRecipePath, Overrides
from rlhf.errors import Stopped, UserError

if TYPE_CHECKING:
    from actors.session import Session
    from launch.run import Work
    from launch.serve.batch_endpoint import EndpointJob
    from rlhf.serving.batch_output import BatchCounts, BatchOutput, InputFacts
    from rlhf.tracking.console import Console

PURPOSE = "answer a file of requests, with resume and exactly one output row a row"
EXAMPLE = "rlhf batch --endpoint http://127.0.0.1:8460/v1 --model travel --in questions.jsonl --out answers.jsonl"


def run(
    *,
    recipe: OptionalRecipePath = None,
    overrides: Overrides,
    model: Annotated[str, typer.Option(metavar="MODEL", help="name at the endpoint; with a recipe a model folder")],
    given: Annotated[Path, typer.Option("--in", metavar="FILE", help="JSON lines: prompt, messages, or OpenAI's form")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="file to write; the same command continues it")],
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="OpenAI-compatible service, up to /v1; key in RLHF_BATCH_KEY")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=4096, help="requests at a time, with --endpoint")] = 16,
    retries: Annotated[int, typer.Option(min=0, max=100, help="of a request that failed, with --endpoint")] = 4,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds of a request, with --endpoint")] = 300.0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="longest answer, with --endpoint")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="of sampling, with --endpoint")] = None,
    block_rows: Annotated[int, typer.Option(min=1, help="rows in memory and written together, with a recipe")] = 1024,
) -> None:
    """Answer every row.

    Raises:
        UserError: the options do not fit each other, or what they name cannot be used.
        MachineryError: the service is down, or the engines failed.
        Stopped: on SIGTERM or SIGINT; the same command continues.
    """
    from launch.options import writable
    from rlhf.secrets import without_secrets
    from rlhf.serving.batch_output import BatchOutput, inspect_input

    if (recipe is None) == (endpoint is None):
        what = "both a recipe and --endpoint" if recipe else "neither a recipe nor --endpoint"
        raise UserError(what, "one of them answers the rows", f"`{EXAMPLE}`")
    place, facts = writable(out), inspect_input(given)
    sampling = {
        name: value
        for name, value in {"max_tokens": max_tokens, "temperature": temperature}.items()
        if value is not None
    }
    if recipe is not None:
        if sampling:
            fix = "rollout.max_response_length=512 rollout.temperature=0.7"
            raise UserError(
                f"--{next(iter(sampling)).replace('_', '-')} with a recipe", "its rollout section samples", fix
            )
        return _by_engines(recipe, overrides, model, given, place, facts, block_rows)
    assert endpoint is not None
    _require_no_overrides(overrides)
    _require_service(endpoint)
    output = BatchOutput(place, facts, {"endpoint": without_secrets(endpoint), "model": model, **sampling})
    from launch.serve.batch_endpoint import EndpointJob

    job = EndpointJob(
        url=endpoint,
        model=model,
        sampling=sampling,
        concurrency=concurrency,
        retries=retries,
        timeout_seconds=timeout,
    )
    return _by_endpoint(job, given, facts, output, place)


def _by_endpoint(job: EndpointJob, given: Path, facts: InputFacts, output: BatchOutput, place: Path) -> None:
    from launch.serve.batch_endpoint import EndpointBatch
    from rlhf.serving.batch_output import require_unchanged_input
    from rlhf.serving.batch_rows import read_batch
    from rlhf.tracking.console import Console

    console = Console(sys.stdout)
    if output.is_complete:
        return console.print(f"{place} is complete: {facts.rows:,} rows")
    with output, console.stage("Batch", facts.rows) as report:
        batch, rows = EndpointBatch(job), read_batch(given, skip=output.done)
        stopped = asyncio.run(batch.run(rows, output, lambda done: report(done, {})))
        if stopped and output.done < facts.rows:
            raise Stopped(stopped, f"{output.done:,} rows of {facts.rows:,}")
        require_unchanged_input(given, facts)
        counts = output.finish()
    return show_summary(console, counts, place)


def _by_engines(
    recipe: str, overrides: list[str], model: str, given: Path, place: Path, facts: InputFacts, block_rows: int
) -> None:
    from launch.run import run_work

    run_work("generate", recipe, overrides, partial(_load, model, given, place, facts, block_rows), log="batch")


def _load(model: str, given: Path, place: Path, facts: InputFacts, block_rows: int, session: Session) -> Work:
    """Check the model and the files before an engine is started."""
    from dataclasses import replace

    from launch.generate import sampling_of
    from launch.serve.batch_engines import EngineBatch
    from rlhf.serving.batch_output import BatchOutput

    named = replace(session.recipe.model, path=model, scratch=None)
    recipe = replace(session.recipe, model=named, ppo=replace(session.recipe.ppo, policy_init=None))
    session = replace(session, recipe=recipe)
    folder = session.verified(Path(model).expanduser())
    _ = session.chat, session.facts  # refuses a model that cannot be used
    sampling = {**sampling_of(recipe.rollout), "seed": recipe.seed}
    output = BatchOutput(place, facts, {"model": str(folder.resolve()), **sampling})
    batch = EngineBatch(session=session, model=folder, given=given, output=output, facts=facts, block_rows=block_rows)

    def work() -> None:
        if output.is_complete:
            return session.console.print(f"{place} is complete: {facts.rows:,} rows")
        return show_summary(session.console, batch.run(), place)

    return work


def show_summary(console: Console, counts: BatchCounts, place: Path) -> None:
    """Print what became of the rows."""
    rows: Mapping[str, float | str] = {
        "rows": counts.rows,
        "answered": counts.rows - counts.failed,
        "failed, with the reason in their row": counts.failed,
    }
    console.summary(f"batch → {place}", rows)
    if counts.failed:
        console.print(f"the failed rows are also in {place.name}.quarantine.jsonl")


def _require_no_overrides(overrides: list[str]) -> None:
    if overrides:
        raise UserError(f"{overrides[0]!r} with --endpoint", "it is a setting of a recipe", "leave it out")


def _require_service(endpoint: str) -> None:
    from pydantic import TypeAdapter, ValidationError

    from rlhf.config.fields import ServiceUrl

    try:
        TypeAdapter(ServiceUrl).validate_python(endpoint)
    except ValidationError as error:
        raise UserError("--endpoint is no address of a service", fix="--endpoint http://127.0.0.1:8000/v1") from error
