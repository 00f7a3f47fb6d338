"""An error of writing names its file and says what is free there, whoever raises it."""

from __future__ import annotations

import errno
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.storage.durable import write_atomically
from rlhf.storage.jsonl import append_line
from rlhf.storage.write_errors import tell, way_on, writing
from rlhf.tracking.trace import TraceFile

WRITERS = """
import sys
from pathlib import Path
import numpy as np, torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from rlhf.checkpoints.manifest import write_files
from rlhf.storage.durable import write_atomically
from rlhf.storage.jsonl import append_line
from rlhf.storage.write_errors import writing
from rlhf.tracking.trace import TraceFile
from rlhf.zero.reshape import _save

def saved(path, save):
    with writing(path):
        save(path)

folder, tensor = Path(sys.argv[1]), torch.zeros(10**6)
words = Tokenizer(models.WordLevel({str(k): k for k in range(200_000)}, unk_token="0"))
writers = {
    "metrics.jsonl": lambda path: append_line(path, {"text": "x" * 4_000_000}),
    "done.json": lambda path: write_atomically(path, "x" * 4_000_000),
    "trace.json": lambda path: [TraceFile(path).instant("x", 0, "y", {str(k): k for k in range(100_000)})],
    "policy.pt": lambda path: write_files({path.name: np.zeros(4_000_000, np.uint8)}, folder),
    "step.pt": lambda path: _save(tensor, path),
    "model.safetensors": lambda path: saved(path, lambda path: save_file({"w": tensor}, path)),
    "tokenizer.json": lambda path: saved(path, lambda path: words.save(str(path))),
}
for name, write in writers.items():
    try:
        write(folder / name)
    except OSError as error:
        print(error.errno, error.filename, error.strerror)
    for path in folder.iterdir():
        path.unlink()
"""


def test_each_file_that_a_full_disk_refuses_is_named(tmp_path: Path) -> None:
    names = [line.split('"')[1] for line in WRITERS.splitlines() if line.startswith('    "')]
    private = ["unshare", "--mount", "--map-root-user", "sh", "-c"]  # seen by this command only, and gone with it
    mount = f"mount -t tmpfs -o size=1m none '{tmp_path}'"
    try:
        subprocess.run([*private, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    command = [*private, f'{mount} && exec "$0" -c "$1" "$2"', sys.executable, WRITERS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    lines = done.stdout.splitlines()[-len(names) :]  # libraries print too
    assert [line.split()[1] for line in lines] == [str(tmp_path / name) for name in names]
    assert all(line.startswith("28 ") and line.endswith(" of 1.0 MiB free)") for line in lines), lines


def test_a_write_that_the_system_names_nobody_for_is_named(tmp_path: Path) -> None:
    """/dev/full can be opened and appended to, and refuses what is written."""
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space") as caught:
        append_line(tmp_path / "metrics.jsonl", {"step": 1})
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")
    assert tell(caught.value, "the folder").startswith(f"{tmp_path}/metrics.jsonl cannot be written: No space left on")
    again = pickle.loads(pickle.dumps(caught.value))  # an actor's error reaches the controller so
    assert (again.filename, again.strerror) == (caught.value.filename, caught.value.strerror)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.EACCES, errno.EDQUOT])
def test_each_error_has_a_way_on_of_its_own(number: int, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught, writing(tmp_path / "done.json"):
        raise OSError(number, os.strerror(number))
    assert caught.value.filename == str(tmp_path / "done.json")
    assert way_on(caught.value) != way_on(OSError(errno.ENOTDIR, ""))
    assert ("free)" in tell(caught.value, "x")) is (number == errno.EDQUOT)


def test_the_name_that_the_system_gives_and_other_errors_stay(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        write_atomically(tmp_path / "none" / "done.json", "")
    assert missing.value.filename == str(tmp_path / "none" / "done.json.partial")
    with pytest.raises(ValueError, match="a bug"), writing(tmp_path / "done.json"):
        raise ValueError("a bug")
    with pytest.raises(RuntimeError, match="a bug"), writing(tmp_path / "done.json"):
        raise RuntimeError("a bug")
    with pytest.raises(FileNotFoundError):
        TraceFile(tmp_path / "none" / "trace.json").instant("x", 0, "y", {})
    with pytest.raises(OSError, match="No space") as once, writing(tmp_path), writing(tmp_path / "inner"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert once.value.filename == str(tmp_path / "inner") and once.value.strerror.count("free)") == 1
