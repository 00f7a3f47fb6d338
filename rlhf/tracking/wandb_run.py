"""Weights & Biases as a guest: it gets every metric, and no fault of it stops a run."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, cast

from rlhf.checkpoints.durable import write_atomically
from rlhf.config.schema import Recipe, TrackingConfig
from rlhf.errors import UserError
from rlhf.tracking.quiet import quiet_framework_logs
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.secrets import without_secrets

if TYPE_CHECKING:
    import wandb

Mode = Literal["online", "offline", "disabled"]

ID = "wandb_id"
"""File in a stage's folder."""
INIT_TIMEOUT_SECONDS = 30.0
"""How long a server that does not answer may hold up the start before the run goes on offline."""
FINISH_TIMEOUT_SECONDS = 120.0
"""How long the last upload may take; what is left stays in the folder for ``wandb sync``."""


def resolve_mode(config: TrackingConfig) -> Mode:
    """What ``tracking.wandb`` comes to on this machine.

    ``auto`` follows ``WANDB_MODE`` where the user has set it, and is otherwise online exactly when W&B finds a key in
    the environment, in netrc or in its own settings.

    Raises:
        UserError: online is asked for and there is no usable key.
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
    """Whether W&B itself finds credentials of the right form; nothing is asked and no server is called."""
    import wandb

    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError:
        return False


class WandbRun:
    """One stage as a W&B run. A failure of it is reported as an event, and the stage goes on without W&B."""

    def __init__(self, run: RunFolder, recipe: Recipe, report: Callable[..., None]) -> None:
        """Args: report writes an event, ``report(kind, **details)``."""
        self._log_file, self._report = run.logs / "wandb.log", report
        self.id = ""
        """W&B's own name of the run, kept in the folder, so that a command that goes on there goes on with the run."""
        self._run: wandb.Run | None = None
        with quiet_framework_logs(self._log_file):
            mode = resolve_mode(recipe.tracking)
            if mode == "online":
                self._start("online", run, recipe)
            if self._run is None and mode != "disabled":
                self._start("offline", run, recipe)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the numbers of one step."""
        self._call("log", lambda run: run.log(dict(metrics), step=step))

    def finish(
        self, summary: Mapping[str, Any], columns: Sequence[str], rows: Sequence[Sequence[Any]], exit_code: int
    ) -> None:
        """Send the stage's summary and its samples as one table, and end the run."""

        def send(run: wandb.Run) -> None:
            import wandb

            run.summary.update(dict(summary))
            if rows:
                run.log({"samples": wandb.Table(columns=list(columns), data=[list(row) for row in rows])})
            run.finish(exit_code=exit_code)

        with quiet_framework_logs(self._log_file):
            self._call("finish", send)
        self._run = None

    def _start(self, mode: Mode, run: RunFolder, recipe: Recipe) -> None:
        import wandb

        config, known = recipe.tracking, run.path / ID
        self.id = known.read_text(encoding="utf-8").strip() if known.exists() else uuid.uuid4().hex[:8]
        try:
            self._run = wandb.init(
                mode=mode,
                id=self.id,
                resume="allow",
                dir=run.path,
                project=config.project,
                name=f"{recipe.name}/{run.stage}",
                group=config.group or recipe.name,
                job_type=run.stage,
                tags=config.tags,
                config=without_secrets(asdict(recipe)),
                settings=wandb.Settings(
                    console="off", init_timeout=INIT_TIMEOUT_SECONDS, finish_timeout=FINISH_TIMEOUT_SECONDS
                ),
            )
        except Exception as error:  # whatever its reason, it must not cost the run
            self._report("wandb_failed", doing=f"start {mode}", error=f"{type(error).__name__}: {error}")
        else:
            write_atomically(known, self.id + "\n")

    def _call(self, doing: str, call: Callable[[wandb.Run], None]) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:  # as above; the run's own files hold all that W&B would show
            self._report("wandb_failed", doing=doing, error=f"{type(error).__name__}: {error}")
            self._run = None
