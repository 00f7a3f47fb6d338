"""``rlhf doctor`` on the command line: for this machine, and for a cluster of two raylets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from launch.cli import main, parse

ROOT = Path(__file__).parents[3]
RECIPE = str(ROOT / "recipes/quickstart.yaml")
STORE = 256 * 2**20
PROGRAM = "import sys; from launch.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide tokens and keys of the user who runs the tests."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def rows_of(said: str) -> dict[str, dict[str, Any]]:
    """Rows of one node in the JSON, by check."""
    return {row["check"]: row for row in json.loads(said)["rows"]}


def test_this_machine(capfd: pytest.CaptureFixture[str]) -> None:
    """Every check has a row, and every failed row has a fix, whatever this machine lacks."""
    code = main(["doctor", RECIPE, "ppo.steps=3", "--json"])
    out, err = capfd.readouterr()
    rows = rows_of(out)
    assert {"versions", "GPUs", "NCCL", "/dev/shm", "runs folder", "ports", "W&B", "plan"} <= rows.keys()
    assert "a checkpoint is" in rows["runs folder"]["found"] and "the plan needs" in rows["host memory"]["found"]
    bad = [row for row in rows.values() if row["status"] == "failed"]
    assert all(row["fix"] for row in bad)
    assert (code == 2) == bool(bad) and ("failed:" in err) == bool(bad)


def test_what_the_user_can_mend_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert main(["doctor", RECIPE, f"runs_dir={tmp_path}/file/runs"]) == 2
    out, err = capfd.readouterr()
    said = " ".join(out.replace("│", " ").split())  # a long path wraps in the table
    assert "ray get-auth-token --generate" in said and "cannot be written to" in said
    assert "Ray's token" in err and "runs folder" in err and "Traceback" not in out + err


def test_a_cluster_that_is_not_there_is_a_failed_row(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--address", "127.0.0.1:1", "--json"]) == 2
    rows = rows_of(capfd.readouterr().out)
    assert rows["cluster"]["status"] == "failed" and "127.0.0.1:1" in rows["cluster"]["found"]
    assert rows["versions"]["node"] == "this machine"


@pytest.mark.parametrize(
    "words",
    [
        ["r.yaml", "a.b=1", "--json"],
        ["--json", "r.yaml", "a.b=1"],
        ["r.yaml", "--json", "a.b=1"],
        ["--json", "--stage", "ppo", "r.yaml", "a.b=1"],
    ],
)
def test_the_recipe_may_stand_before_or_behind_the_options(words: list[str]) -> None:
    options = parse(["doctor", *words]).options
    assert (options["recipe"], options["overrides"], options["as_json"]) == ("r.yaml", ["a.b=1"], True)


def test_a_wrong_recipe_is_refused_as_everywhere(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", RECIPE, "ppo.stepps=3"]) == 2
    assert "ppo.steps" in capfd.readouterr().err


@pytest.fixture
def two_raylets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A Ray cluster of two raylets on one host, without a token."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1, object_store_memory=STORE)
    yield cluster
    cluster.shutdown()


def test_every_node_of_a_cluster_is_examined(two_raylets: Cluster) -> None:
    """Join from another process, as a user's would; both nodes answer every check, and reach each other."""
    command = [sys.executable, "-c", PROGRAM, "doctor", RECIPE, "--address", two_raylets.address, "--json"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=400, check=False
    )
    values = json.loads(done.stdout)
    by_node: dict[str, dict[str, Any]] = {}
    for row in values["rows"]:
        by_node.setdefault(row["node"], {})[row["check"]] = row
    assert by_node["all nodes"]["cluster"]["found"] == "2 nodes, 0 GPUs and 2 cores by Ray's count"
    nodes = [rows for node, rows in by_node.items() if node not in ("all nodes", "this machine")]
    assert len(nodes) == 2, done.stdout
    for rows in nodes:
        assert {check: row["status"] for check, row in rows.items() if check in PASSED} == dict.fromkeys(PASSED, "ok")
        assert rows["other nodes"]["found"] == "reaches 1 other node at a free port"
        assert rows["Ray's token"]["status"] == "warning"
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr


PASSED = ("same versions", "object store", "shared folder", "other nodes", "clock", "open files")
