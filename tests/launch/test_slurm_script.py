"""How ``launch/slurm.sh`` ends and requeues a job: under a real SLURM, with stubs for Ray and the run.

The real ones are tested in ``test_slurm.py``.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator

import pytest

from tests.launch.slurm import Slurm, has_groups, slurm, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]
PROGRAMS = {
    "ray": """#!/bin/bash
PATH=$(dirname "$0"):$PATH
if [ "$1 $2" = "start --head" ] && [ -e no-head ]; then echo "no head today"; exit 1; fi
echo "$2: gpus $CUDA_VISIBLE_DEVICES, opens $(gpus); store $OBJECT_STORE_BYTES"
logs=/tmp/rlhf-$SLURM_JOB_ID/session_latest/logs
if [ "$2" = --head ]; then mkdir -p "$logs"; echo why >"$logs/raylet.out"; fi
exec sleep 1000
""",
    "gpus": """#!/bin/bash
# The GPUs that a process may open.
for gpu in /mnt/gpu?; do if (: <"$gpu") 2>/dev/null; then printf '%s ' "${gpu#/mnt/gpu}"; fi; done
""",
    "python": """#!/bin/sh
# Modules of this project: the wait for nodes, the size of the object store, and an attempt at the run.
case $2 in
launch.wait_for_nodes)
    [ -e no-head ] && sleep 1000
    until [ -e "/tmp/rlhf-$SLURM_JOB_ID/session_latest/logs/raylet.out" ]; do sleep 0.1; done ;;
launch.node_sizes) echo 123456789; exit 0 ;;
launch.attempt) shift 3; exec "$(dirname "$0")/rlhf" "$@" ;;
esac
""",
    "rlhf": """#!/bin/bash
PATH=$(dirname "$0"):$PATH
# Ends with 75 when it is asked to, and else with the exit code in the recipe; the second time at once with 0.
# "early" cannot answer yet: a signal ends it. "killed" is killed, as by the kernel that needs its memory.
echo "$@"
echo "run: gpus $CUDA_VISIBLE_DEVICES, opens $(gpus); store $OBJECT_STORE_BYTES"
[[ -e $2.begun ]] && exit 0
[[ $2 == early ]] || trap 'sleep 0.5; exit 75' TERM
touch "$2.begun"
[[ $2 != killed ]] || kill -KILL $$
[[ $2 == wait* || $2 == early ]] || exit "$2"
while :; do sleep 0.1; done
""",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    folder = tmp_path_factory.mktemp("slurm")
    programs = folder / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in PROGRAMS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(stat.S_IRWXU)
    with slurm(folder) as made:
        yield made


def submit(cluster: Slurm, *words: str) -> int:
    return cluster.submit("--nodes=2", "launch/slurm.sh", *words, VENV=str(cluster.folder / "venv"))


def ended(cluster: Slurm, number: int) -> tuple[str, str, str]:
    """State, exit code and restarts of a finished job."""
    job = cluster.wait(number, 60)
    return job["JobState"], job["ExitCode"], job["Restarts"]


def test_the_first_word_may_be_a_command_and_settings_follow(cluster: Slurm) -> None:
    number = submit(cluster, "ppo", "0", "ppo.steps=3")
    assert ended(cluster, number) == ("COMPLETED", "0:0", "0"), cluster.output(number)
    assert "ppo 0 ppo.steps=3 placement.ray_address=10.77.0.1:6379" in cluster.output(number)
    assert "rlhf pipeline on" not in cluster.output(number)


@pytest.mark.parametrize("code", ["2", "3"])
def test_a_final_failure_ends_the_job_with_its_exit_code(cluster: Slurm, code: str) -> None:
    number = submit(cluster, code)
    assert ended(cluster, number) == ("FAILED", f"{code}:0", "0"), cluster.output(number)
    assert f"pipeline {code} placement" in cluster.output(number)
    assert not list(cluster.project.glob(".slurm/*/token"))
    assert (cluster.project / f".slurm/{number}/ray-logs-0/n1/raylet.out").exists(), cluster.output(number)


@pytest.mark.parametrize("recipe", ["wait", "early"])
def test_asked_by_slurm_it_stops_and_the_job_is_done_again(cluster: Slurm, recipe: str) -> None:
    number = submit(cluster, recipe)
    cluster.wait_for(number, cluster.project / f"{recipe}.begun", 60)
    cluster.run("scancel", "--batch", "--signal=TERM", str(number))
    assert ended(cluster, number) == ("COMPLETED", "0:0", "1"), cluster.output(number)
    assert "ended with exit code 75\nit goes back into the queue" in cluster.output(number)


def test_preempted_it_stops_and_is_done_again_when_there_is_room(cluster: Slurm) -> None:
    number = submit(cluster, "wait-2")
    cluster.wait_for(number, cluster.project / "wait-2.begun", 60)
    urgent = cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap", "true")
    assert cluster.wait(urgent, 60)["JobState"] == "COMPLETED"
    assert ended(cluster, number) == ("COMPLETED", "0:0", "1"), cluster.output(number)
    assert "ended with exit code 75\nit goes back into the queue" in cluster.output(number)


def test_asked_by_its_user_it_stops_and_stays_stopped(cluster: Slurm) -> None:
    number = submit(cluster, "wait-no-more")
    cluster.wait_for(number, cluster.project / "wait-no-more.begun", 60)
    cluster.run("scancel", "--batch", "--signal=INT", str(number))
    assert ended(cluster, number) == ("FAILED", "75:0", "0"), cluster.output(number)
    assert "queue" not in cluster.output(number)


@pytest.mark.parametrize("recipe", ["killed", "1"])
def test_a_run_that_was_killed_or_that_ray_ended_is_done_again(cluster: Slurm, recipe: str) -> None:
    number = submit(cluster, recipe)
    assert ended(cluster, number) == ("COMPLETED", "0:0", "1"), cluster.output(number)
    assert "ended with exit code 75\nit goes back into the queue" in cluster.output(number)


def test_a_head_that_fails_is_started_again_a_few_times_and_its_log_is_shown(cluster: Slurm) -> None:
    flag = cluster.project / "no-head"
    flag.touch()
    number = submit(cluster, "4")
    job = cluster.wait(number, 120)
    flag.unlink()
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "3:0", "3"), cluster.output(number)
    assert "no head today" in (cluster.folder / f"{number}.out").read_text()


def test_a_job_gets_the_gpus_that_it_asked_for_and_the_planned_object_store(cluster: Slurm) -> None:
    """Of GPUs that are generic resources; where the kernel's control groups confine jobs, it opens no others."""
    options = "--nodes=2", "--oversubscribe", "--gpus-per-node=1", "--mem=500"
    number = cluster.submit(*options, "launch/slurm.sh", "wait-gpus", VENV=str(cluster.folder / "venv"))
    cluster.wait_for(number, cluster.project / "wait-gpus.begun", 60)
    opens, end = "0" if has_groups() else "0 1", time.monotonic() + 60
    for process in ("run", "--head", "--address=10.77.0.1:6379"):
        while f"{process}: gpus 0, opens {opens} ; store 123456789" not in cluster.output(number):
            assert time.monotonic() < end, cluster.output(number)
            time.sleep(0.5)
    cluster.run("scancel", "--batch", "--signal=INT", str(number))
    assert ended(cluster, number)[0] == "FAILED"
    assert "object store of a node: 123456789\n" in cluster.output(number)


def test_without_a_recipe_the_usage_is_printed(cluster: Slurm) -> None:
    number = submit(cluster)
    assert ended(cluster, number) == ("FAILED", "2:0", "0"), cluster.output(number)
    assert "fix: sbatch --nodes=2 launch/slurm.sh RECIPE" in cluster.output(number)
