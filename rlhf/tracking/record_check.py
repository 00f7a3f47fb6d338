"""Checks the files of a stage's folder that a command reads back or writes to, before anything is started.

Otherwise a damaged one would end the command hours later, when it needs the file.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlhf.evaluation.comparison import ANSWERS, read_answers, read_compared
from rlhf.storage.jsonl import read_lines
from rlhf.storage.reading import damaged, require_file, require_folder
from rlhf.tracking.metric_rows import FIX, read_metric_rows
from rlhf.tracking.run_folder import RunFolder

FILES = (
    "bad_rows.jsonl",
    "checkpoints/best",
    "checkpoints/latest",
    "overoptimisation.png",
    "status.json",
    ANSWERS,
)
"""Files of a stage's folder beside those that ``RunFolder`` names."""
ASIDE = "move it elsewhere, and give the same command again"


def check_kinds(run: RunFolder) -> None:
    """Check that no file of a stage's folder is a folder, and no folder a file; none of them need exist.

    Raises:
        UserError: the first one that is.
    """
    named = (run.config, run.metrics, run.samples, run.events, run.trace, run.summary, run.before, run.after)
    for path in (*named, *(run.path / name for name in FILES)):
        require_file(path, ASIDE)
    for path in (run.path, run.logs, run.model, run.best, run.checkpoints):
        require_folder(path, ASIDE)


def check_first_answers(run: RunFolder, sizes: Mapping[str, int]) -> None:
    """Check that a resumed stage has the answers before its first step, which can no longer be made.

    Args:
        sizes: as for ``check_record``.

    Raises:
        UserError: the file has another size than at the checkpoint, or is gone.
    """
    then, now = sizes.get(run.before.name, 0), run.before.stat().st_size if run.before.exists() else 0
    if then not in (0, now):
        fix = f"restore the file, or delete {run.path} to train the {run.stage} stage again"
        raise damaged(run.before, f"has {now:,} bytes, and had {then:,} at the checkpoint", fix)


def check_record(run: RunFolder, sizes: Mapping[str, int] | None = None) -> None:
    """Check the content of what a finished or resumed stage has recorded.

    Args:
        sizes: size in bytes of each growing file at the checkpoint from which the stage resumes: what was written later
            is removed, and not checked. None: the stage is finished.

    Raises:
        UserError: a file is damaged.
    """
    until = sizes or {}
    read_metric_rows(run.metrics, until.get(run.metrics.name))
    for number, row in enumerate(read_lines(run.samples, until.get(run.samples.name)), start=1):
        if type(row.get("step")) is not int:
            raise damaged(run.samples, f"has no sample of a step in line {number}", FIX)
    read_compared(run.path)
    for path in (run.before, run.after):
        if sizes is not None and path.exists():
            read_answers(path, f"restore the file, or delete {run.path} to train the {run.stage} stage again")
