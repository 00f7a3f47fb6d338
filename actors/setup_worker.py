"""What a local Ray starts for each worker instead of its own program of this name: sets variables, and runs the worker.

    python actors/setup_worker.py default_worker.py ARGUMENT ... --language=PYTHON --serialized-runtime-env-context=JSON

Ray's own imports Ray for that, which takes half a second of a core. Nothing but the standard library is imported here.
The raylet knows the program by its name.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

CONTEXT, LANGUAGE = "--serialized-runtime-env-context=", "--language="
"""Beginnings of the arguments that are meant for this program."""
UNDERSTOOD = ("env_vars", "py_executable")
"""Parts of a context that are handled here."""


def worker_command(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command of a worker, and its variables: those of a runtime environment refer to no others here.

    Whatever is not understood is left to Ray's own program.
    """
    mine = {start: [text for text in arguments if text.startswith(start)] for start in (CONTEXT, LANGUAGE)}
    others = [text for text in arguments if not text.startswith((CONTEXT, LANGUAGE))]
    if len(mine[CONTEXT]) == 1 and mine[LANGUAGE] == [f"{LANGUAGE}PYTHON"]:
        context = json.loads(mine[CONTEXT][0].removeprefix(CONTEXT))
        variables = dict(context.get("env_vars") or {})
        is_plain = not any(value for name, value in context.items() if name not in UNDERSTOOD)
        if is_plain and not any("$" in value for value in variables.values()):
            return [*shlex.split(context["py_executable"]), *others], variables
    return [sys.executable, str(Path(others[0]).with_name("setup_worker.py")), *arguments], {}


def main() -> None:
    """Become the worker."""
    command, variables = worker_command(sys.argv[1:])
    os.execve(command[0], command, {**os.environ, **variables})


if __name__ == "__main__":
    main()
