"""Tests on a full disk: with a limit on the size of files, and on a small file system if one can be mounted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, signal, sys
from pathlib import Path
from rlhf.checkpoints.manifest import write_files
from rlhf.checkpoints.store import CheckpointStore
from tests.rlhf.checkpoints.making import CONFIG, arrays, assert_whole, commit, names
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
store = CheckpointStore(folder, 2, 0)
commit(store, 1)

def refused(attempt):
    try:
        attempt()
    except OSError as error:
        print(error.strerror)
    store.abandon(2)
    assert names(folder) == ["latest", "step_1"], names(folder)
    assert (folder / "latest").read_text() == "step_1\\n"
    assert_whole(store.latest())

refused(lambda: write_files(arrays(2, size=2_000_000), store.begin(2)))
entries = write_files(arrays(2), store.begin(2))
refused(lambda: store.commit(2, entries, {"text": "x" * 4_000_000}, CONFIG, None))
commit(store, 2)
assert_whole(store.latest())
print(store.latest().step)
"""


def run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    out = run([sys.executable, "-c", SCRIPT, str(tmp_path), "1000000"])
    assert out.splitlines() == ["File too large", "File too large", "2"]


def test_a_full_file_system(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=1m none '{tmp_path}'"
    private = ["unshare", "--mount", "--map-root-user", "sh", "-c"]  # seen by this command only, and gone with it
    try:
        subprocess.run([*private, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    out = run([*private, f'{mount} && exec "$0" -c "$1" "$2" 0', sys.executable, SCRIPT, str(tmp_path)])
    assert out.splitlines() == [*["No space left on device (0.0 MiB of 1.0 MiB free)"] * 2, "2"]
