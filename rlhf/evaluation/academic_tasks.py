"""Academic tasks by EleutherAI's ``lm-eval``, which runs as a process of its own for each model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import StrictBool, StrictStr

from rlhf.config.fields import Count, CountOrZero, PartName, Seconds, Texts, section
from rlhf.errors import MachineryError, UserError
from rlhf.process_identity import kill_group

PACKAGE = "lm_eval"
SHOWN = 600
"""Characters of the package's last words that an error shows."""
INSTALL = "pip install 'rlhf[lm-eval]'"


@section
class AcademicTasksConfig:
    """Tasks of ``lm-eval``, and the models that do them."""

    models: dict[PartName, StrictStr]
    """Name of an arm → folder or hub name of its model."""
    tasks: Texts
    """Names of tasks or groups, as ``lm-eval ls tasks`` lists them."""
    folder: StrictStr | None = None
    """Folder of further task files (YAML); tasks with local data need no network."""
    backend: Literal["hf", "vllm"] = "hf"
    """What computes: transformers or vLLM."""
    model_args: dict[StrictStr, StrictStr | int | float | bool] = field(default_factory=dict)
    """Further arguments of the backend, such as ``dtype`` or ``max_model_len``."""
    fewshot: CountOrZero | None = None
    """Examples in the prompt; null: the task's own number."""
    limit: Count | None = None
    """Most questions of each task."""
    batch_size: Count = 8
    """Requests that transformers computes together; vLLM chooses itself."""
    chat_template: StrictBool = False
    """Put questions through the model's chat template."""
    timeout_seconds: Seconds = 86400.0
    """Deadline of all tasks of one model."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One metric of one task, as ``lm-eval`` reports it."""

    arm: str
    task: str
    metric: str
    """Its name, with the filter of answers if there is one: ``exact_match (strict-match)``."""
    value: float
    stderr: float | None
    """Standard error of the mean; None where the package gives none."""


def require_lm_eval() -> None:
    """Check that the package is installed.

    Raises:
        UserError: it is not.
    """
    if find_spec(PACKAGE) is None:
        raise UserError("lm_eval needs the package lm-eval, which is not installed", "it is optional", INSTALL)


def run_tasks(config: AcademicTasksConfig) -> tuple[TaskResult, ...]:
    """Run the tasks of every model, one model after another.

    Raises:
        UserError: the package is missing, or refuses tasks or models.
        MachineryError: it was killed, or took longer than ``config.timeout_seconds``.
    """
    require_lm_eval()
    return tuple(result for arm in config.models for result in _run_model(arm, config))


def command_of(config: AcademicTasksConfig, model: str, out: Path) -> list[str]:
    """The command line of one model, which writes its results below ``out``."""
    arguments = {"pretrained": model, **config.model_args}
    options: dict[str, object | None] = {
        "--model": config.backend,
        "--model_args": json.dumps(arguments),
        "--tasks": ",".join(config.tasks),
        "--include_path": config.folder,
        "--num_fewshot": config.fewshot,
        "--limit": config.limit,
        "--batch_size": "auto" if config.backend == "vllm" else config.batch_size,
        "--output_path": out,
    }
    given = [str(part) for name, value in options.items() if value is not None for part in (name, value)]
    return [sys.executable, "-m", PACKAGE, "run", *given, *(["--apply_chat_template"] if config.chat_template else [])]


def _run_model(arm: str, config: AcademicTasksConfig) -> list[TaskResult]:
    with TemporaryDirectory() as folder:
        command = command_of(config, config.models[arm], Path(folder))
        code, output = _run(command, config.timeout_seconds, arm)
        files = sorted(Path(folder).rglob("results_*.json"))
        if code or not files:
            what = f"lm-eval ended with exit code {code} on the arm {arm}"
            if code < 0:
                raise MachineryError(f"{what}: {_last_lines(output)}")
            raise UserError(
                what, _last_lines(output), f"correct lm_eval in the comparison; it ran: {' '.join(command)}"
            )
        return list(read_results(json.loads(files[-1].read_text(encoding="utf-8")), arm))


def _run(command: list[str], seconds: float, arm: str) -> tuple[int, str]:
    """Exit code and output; all processes of the command are gone at the end."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            what = f"lm-eval took longer than lm_eval.timeout_seconds = {seconds:g} on the arm {arm}"
            raise MachineryError(what) from error
        finally:
            kill_group(process)
    return process.returncode, output


def read_results(results: Mapping[str, Any], arm: str) -> Iterator[TaskResult]:
    """The metrics of a file of results: keys are ``metric,filter``, standard errors ``metric_stderr,filter``."""
    for task, numbers in results["results"].items():
        for key, value in numbers.items():
            metric, comma, filter_name = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                stderr = numbers.get(f"{metric}_stderr,{filter_name}")
                yield TaskResult(
                    arm=arm,
                    task=task,
                    metric=metric if filter_name == "none" else f"{metric} ({filter_name})",
                    value=float(value),
                    stderr=float(stderr) if isinstance(stderr, int | float) else None,
                )


def _last_lines(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-SHOWN:]
