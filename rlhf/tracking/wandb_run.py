"""The Weights & Biases sink."""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

from rlhf.config.schema import Recipe, TrackingConfig
from rlhf.errors import Stopped, UserError
from rlhf.secrets import without_secrets
from rlhf.storage.durable import write_atomically
from rlhf.storage.reading import read_text
from rlhf.tracking.alerts import Alert
from rlhf.tracking.histogram import Histograms
from rlhf.tracking.quiet import quiet_framework_logs
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.sink import Sink

Mode = Literal["online", "offline", "disabled"]

ID = "wandb_id"
"""File in the stage's folder with the W&B run's id."""
SWEEP = "WANDB_SWEEP_ID"
"""Environment variable that W&B's agent sets for the commands of a sweep."""
INIT_TIMEOUT_SECONDS = 30.0
"""Timeout of the server at the start, after which the run continues offline."""
FINISH_TIMEOUT_SECONDS = 120.0
"""Timeout of the last upload; the remainder stays in the folder for ``wandb sync``."""


def resolve_mode(config: TrackingConfig) -> Mode:
    """Resolve ``tracking.wandb`` on this machine.

    ``auto`` follows ``WANDB_MODE`` if it is set; otherwise it is online exactly if W&B finds a key in the environment,
    in netrc or in its settings.

    Raises:
        UserError: the mode is online and no usable key exists.
    """
    mode = config.wandb if config.wandb != "auto" else os.environ.get("WANDB_MODE", "auto")
    if mode in ("offline", "disabled"):
        return cast(Mode, mode)
    if key_is_configured():
        return "online"
    if mode == "auto":
        return "offline"
    raise UserError(
        "W&B is to be online, but no API key is configured",
        "WANDB_API_KEY and netrc hold no usable one, or WANDB_MODE=offline overrules them",
        "run `wandb login`, or set tracking.wandb=offline and upload later with `wandb sync`",
    )


def key_is_configured() -> bool:
    """Whether W&B finds well-formed credentials; it neither prompts nor calls a server."""
    import wandb

    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError:
        return False


class WandbRun(Sink):
    """One stage as a W&B run; if it cannot be started, an event is reported and the stage continues without W&B."""

    name = "wandb"

    def __init__(self, run: RunFolder, recipe: Recipe, report: Callable[..., None]) -> None:
        """Start the W&B run, offline if it cannot be started online.

        Args:
            report: writes an event, ``report(kind, **details)``.
        """
        self._report, self._recipe, self._stage = report, recipe, run.stage
        self._log_file = run.logs / "wandb.log"
        self.id = ""
        """Id of the W&B run, stored in the stage's folder, so that a resumed stage resumes the W&B run."""
        self._run: Any = None
        with quiet_framework_logs(self._log_file):
            mode = resolve_mode(recipe.tracking)
            if mode == "online":
                self._start("online", run, recipe)
            if self._run is None and mode != "disabled":
                self._start("offline", run, recipe)
        self.works = self._run is not None

    def _start(self, mode: Mode, run: RunFolder, recipe: Recipe) -> None:
        import wandb

        config, known = recipe.tracking, run.path / ID
        in_sweep = SWEEP in os.environ  # a sweep's server assigns the run's id and project
        try:
            fix = "delete the file: the stage then starts a new W&B run"
            own = read_text(known, fix).strip() if known.exists() else uuid.uuid4().hex[:8]
            with arguments_without_secrets():
                self._run = wandb.init(
                    mode=mode,
                    id=None if in_sweep else own,
                    resume="allow",
                    allow_val_change=True,  # a resumed run may differ in keys that its result does not depend on
                    dir=run.path,
                    project=None if in_sweep else config.project,
                    name=f"{config.run_name or recipe.name}/{run.stage}",
                    group=config.group or recipe.name,
                    job_type=run.stage,
                    tags=config.tags,
                    config=without_secrets(asdict(recipe)),
                    settings=wandb.Settings(
                        console="off",
                        disable_code=True,  # uncommitted code may contain secrets
                        init_timeout=INIT_TIMEOUT_SECONDS,
                        finish_timeout=FINISH_TIMEOUT_SECONDS,
                    ),
                )
        except Exception as error:  # no failure of W&B may end the run
            self._report("wandb_failed", doing=f"start {mode}", error=f"{type(error).__name__}: {error}")
        else:
            self.id = str(self._run.id)
            write_atomically(known, self.id + "\n")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of one step."""
        self._run.log(dict(metrics), step=step)

    def histograms(self, step: int, histograms: Histograms) -> None:
        """Log the histograms of one step."""
        import wandb

        shown = {name: wandb.Histogram(np_histogram=(list(h.counts), h.edges)) for name, h in histograms.items()}
        self._run.log(shown, step=step)

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
        self._run.log({name: table}, step=step)

    def alert(self, alert: Alert) -> None:
        """Send a warning, which W&B passes on by mail or chat."""
        self._run.alert(title=alert.title, text=alert.text, level=alert.level, wait_duration=0)

    def artifact(self, kind: str, folder: Path, details: Mapping[str, Any]) -> None:
        """Upload a folder. A checkpoint is copied first, because it may be removed before W&B has read it."""
        import wandb

        name = re.sub(r"[^\w.-]", "-", f"{self._recipe.name}-{self._stage}-{kind}")
        artifact = wandb.Artifact(name, type=kind, metadata=dict(details))
        aliases = ["latest", *([f"step_{details['step']}"] if "step" in details else [])]
        with quiet_framework_logs(self._log_file):
            artifact.add_dir(str(folder), policy="mutable" if kind == "checkpoint" else "immutable")
            self._run.log_artifact(artifact, aliases=aliases)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Set the run's summary and end it, as preempted if it was stopped on request."""
        with quiet_framework_logs(self._log_file):
            self._run.summary.update(dict(summary))
            if exit_code == Stopped.exit_code:
                self._run.mark_preempting()
            self._run.finish(exit_code=exit_code)

    def release(self) -> None:
        """Release W&B's process, which may have ended before the run: Ray stops a job's children.

        Otherwise W&B would raise again when this process exits, after the run's last output.
        """
        if self._run is None:
            return
        import wandb

        with quiet_framework_logs(self._log_file), suppress(Exception):
            wandb.teardown()


@contextmanager
def arguments_without_secrets() -> Iterator[None]:
    """Context in which the command line, which W&B records, contains no secrets."""
    arguments = sys.argv[:]
    sys.argv[:] = without_secrets(arguments)
    try:
        yield
    finally:
        sys.argv[:] = arguments
