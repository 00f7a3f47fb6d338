"""Each test looks at a process of its own: pytest holds the descriptors of this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHATTER = """
import logging, os, subprocess, sys, warnings
print("python")
print("error stream", file=sys.stderr)
os.write(1, b"from C\\n")
subprocess.run(["sh", "-c", "echo child; echo child error >&2"])
logging.getLogger("vllm").warning("logger")
warnings.warn("warning")
"""


def run(script: str, log: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, str(log)], capture_output=True, text=True, timeout=60, check=False
    )


def assert_holds_chatter(log: Path) -> None:
    text = log.read_text()
    for line in ("python", "error stream", "from C", "child", "child error", "logger", "warning"):
        assert line in text


def test_only_what_is_meant_for_the_user_reaches_the_screen(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "driver.log"
    script = (
        "import sys; from pathlib import Path; from rlhf.tracking.quiet import quiet_framework_logs\n"
        "print('before')\n"
        "with quiet_framework_logs(Path(sys.argv[1])) as console:\n"
        "    print('progress', file=console)\n"
        + "".join(f"    {line}\n" for line in CHATTER.strip().splitlines())
        + "print('after'); print('after error', file=sys.stderr)\n"
    )
    result = run(script, log)
    assert result.stdout == "before\nprogress\nafter\n"
    assert result.stderr == "after error\n"
    assert_holds_chatter(log)


def test_an_error_that_leaves_the_block_is_seen(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from rlhf.tracking.quiet import quiet_framework_logs\n"
        "with quiet_framework_logs(Path(sys.argv[1])):\n"
        "    raise ValueError('told to the user')\n"
    )
    result = run(script, tmp_path / "driver.log")
    assert result.returncode == 1
    assert "told to the user" in result.stderr


def test_a_worker_is_silent_for_good(tmp_path: Path) -> None:
    log = tmp_path / "policy-0.log"
    log.write_text("earlier\n")
    script = (
        "import sys; from pathlib import Path; from rlhf.tracking.quiet import redirect_output\n"
        "redirect_output(Path(sys.argv[1]))\n" + CHATTER
    )
    result = run(script, log)
    assert (result.stdout, result.stderr) == ("", "")
    assert log.read_text().startswith("earlier\n")
    assert_holds_chatter(log)
