"""What ``launch/slurm.sh`` leaves behind, and the addresses that it chooses: with stand-ins for SLURM, Ray and the run.

``test_slurm_script.py`` has a real SLURM.
"""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launch.hosts import ROOT

PROGRAMS = {
    "scontrol": """#!/bin/bash
if [[ $2 == hostnames ]]; then printf 'n1\\nn2\\n'; else echo "NodeName=$3 NodeAddr=$3-addr"; fi
""",
    "getent": """#!/bin/bash
case $2 in n1-addr) [[ -n $HEAD ]] || exit 2; echo "$HEAD STREAM" ;; *) echo "10.0.0.2 STREAM" ;; esac
""",
    "srun": """#!/bin/bash
# On the other node, whose scratch folder is the same one here.
while [[ $1 == --* ]]; do shift; done
export SLURMD_NODENAME=n2
exec "$@"
""",
    "ray": """#!/bin/bash
echo "ray $*"
if [[ $2 != --head ]]; then mkdir -p "$SCRATCH/joined"; exit; fi
mkdir -p "$SCRATCH/session_1/logs"
ln -sfn session_1 "$SCRATCH/session_latest"
echo why >"$SCRATCH/session_1/logs/raylet.out"
mkdir "$SCRATCH/up"
exec sleep 1000
""",
    "python": """#!/bin/bash
case $2 in
launch.wait_for_nodes) until [[ -d $SCRATCH/joined && -d $SCRATCH/up ]]; do sleep 0.01; done ;;
launch.own_address) echo "own toward ${3:-anywhere}" >>"$SLURM_SUBMIT_DIR/asked"; echo 10.9.9.9 ;;
launch.attempt) exit "$CODE" ;;
esac
""",
    "rlhf": "#!/bin/bash\n",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A project's folder in which the script runs as SLURM's batch script."""

    project: Path
    scratch: Path

    def run(self, code: int, restarts: int = 0, head: str = "10.0.0.1", **more: str) -> str:
        """Run it once; returns what it printed."""
        environment = {
            "PATH": f"{self.project}/programs:{os.environ['PATH']}",
            "VENV": str(self.project / "venv"),
            "SLURM_JOB_ID": self.scratch.name.removeprefix("rlhf-"),
            "SLURM_SUBMIT_DIR": str(self.project),
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_JOB_END_TIME": "9999999999",
            "SLURM_RESTART_COUNT": str(restarts),
            "SLURMD_NODENAME": "n1",
            "HOME": str(self.project),
            "SCRATCH": str(self.scratch),
            "CODE": str(code),
            "HEAD": head,
            **more,
        }
        script = [str(ROOT / "launch/slurm.sh"), "recipe.yaml"]
        done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def file(self, name: str) -> Path:
        return self.project / ".slurm" / self.scratch.name.removeprefix("rlhf-") / name


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    for folder in ("programs", "venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name, text in PROGRAMS.items():
        folder = "programs" if name in ("scontrol", "getent", "srun") else "venv/bin"
        (tmp_path / folder / name).write_text(text)
        (tmp_path / folder / name).chmod(stat.S_IRWXU)
    return Job(project=tmp_path, scratch=Path(f"/tmp/rlhf-4711{os.getpid()}"))


def test_after_a_failure_rays_logs_are_kept_and_the_scratch_folder_is_not(job: Job) -> None:
    said = job.run(3)
    kept = job.file("ray-logs-0")
    assert (kept / "n1/raylet.out").read_text() == "why\n"
    assert (kept / "n2/raylet.out").read_text() == "why\n", "the other nodes' too"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert f"Ray's logs, which were in {job.scratch}, are in .slurm/" in said
    assert not job.scratch.exists()


def test_after_a_good_end_they_are_not(job: Job) -> None:
    assert "Ray's logs" not in job.run(0)
    assert not job.file("ray-logs-0").exists() and not job.scratch.exists()


def test_a_requeued_job_appends_to_its_logs(job: Job) -> None:
    job.run(3)
    job.run(3, restarts=1)
    for name in ("head.log", "n2.log"):
        lines = job.file(name).read_text().splitlines()
        assert [line for line in lines if line.startswith("---")] == [f"--- start of attempt {n}" for n in (0, 1)]
        assert sum(line.startswith("ray start") for line in lines) == 2
    assert job.file("ray-logs-1/n1/raylet.out").exists()


def test_nodes_have_the_addresses_of_slurm(job: Job) -> None:
    assert "the head is 10.0.0.1;" in job.run(0)
    assert not (job.project / "asked").exists()
    assert "--node-ip-address=10.0.0.2" in job.file("n2.log").read_text()


@pytest.mark.parametrize("head", ["127.0.1.1", ""])
def test_a_head_whose_name_says_nothing_takes_the_address_toward_the_other_nodes(job: Job, head: str) -> None:
    assert "the head is 10.9.9.9;" in job.run(0, head=head)
    assert (job.project / "asked").read_text() == "own toward 10.0.0.2\n"
    assert "--node-ip-address=10.0.0.2" in job.file("n2.log").read_text()


def test_a_named_interface_is_that_of_every_node(job: Job) -> None:
    assert "the head is 10.9.9.9;" in job.run(0, RLHF_INTERFACE="ib0")
    worker = job.file("n2.log").read_text()
    assert "--address=10.9.9.9:6379 --node-ip-address=10.9.9.9" in worker, "as the worker says itself"
