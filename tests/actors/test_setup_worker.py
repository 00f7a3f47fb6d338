"""What a local Ray starts for a worker: the same command and variables as Ray's own program would, without Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from actors import setup_worker
from actors.setup_worker import CONTEXT, worker_command

WORKER = "/ray/workers/default_worker.py"


def given(language: str = "PYTHON", **context: object) -> list[str]:
    """The arguments that the raylet gives."""
    return [WORKER, "--node-ip-address=127.0.0.1", f"--language={language}", f"{CONTEXT}{json.dumps(context)}"]


def test_a_worker_runs_its_executable_with_its_variables() -> None:
    command, variables = worker_command(given(env_vars={"A": "1"}, py_executable="/bin/py -I 'with space'"))
    assert command == ["/bin/py", "-I", "with space", WORKER, "--node-ip-address=127.0.0.1"]
    assert variables == {"A": "1"}
    plain = given(env_vars={}, py_executable="/bin/py", command_prefix=[], java_jars=[])
    assert worker_command(plain) == (["/bin/py", WORKER, "--node-ip-address=127.0.0.1"], {})


def test_what_is_not_understood_is_left_to_ray() -> None:
    own = [sys.executable, "/ray/workers/setup_worker.py"]
    for arguments in (
        given(env_vars={"PATH": "/mine:${PATH}"}, py_executable="py"),
        given(env_vars={}, py_executable="py", command_prefix=["cd", "/there", "&&"]),
        given(language="JAVA", env_vars={}, py_executable="py"),
        [WORKER, "--node-ip-address=127.0.0.1"],
    ):
        assert worker_command(arguments) == ([*own, *arguments], {}), arguments


def test_it_becomes_the_worker_and_imports_no_ray(tmp_path: Path) -> None:
    program = tmp_path / "default_worker.py"
    program.write_text("import os, sys; print(os.getpid(), os.environ['A'], os.environ['KEPT'], sys.argv[1:])")
    context = json.dumps({"env_vars": {"A": "x"}, "py_executable": sys.executable})
    arguments = [str(program), "one", "--language=PYTHON", f"{CONTEXT}{context}"]
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", setup_worker.__file__, *arguments],
        env={**os.environ, "KEPT": "y"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        said, imported = process.communicate(timeout=60)
    assert said.split() == [str(process.pid), "x", "y", "['one']"]
    assert "shlex" in imported and "ray" not in {line.rpartition("|")[2].strip() for line in imported.splitlines()}
