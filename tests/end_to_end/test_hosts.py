"""A cluster of three hosts, started by the documented commands: jobs that are submitted, followed and stopped there,
roles on several hosts, a host that goes and comes again, and strangers who are refused on every port."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rlhf.storage.jsonl import read_lines
from tests.end_to_end.small import RECIPE, ROOT, make_data_and_reward, overrides
from tests.launch.hosts import Host, Hosts, Listener, hosts, why_not

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=f"no several hosts on this machine: {why_not()}"),
    pytest.mark.timeout(2400),
    pytest.mark.slow,  # nine minutes, on a machine that does nothing else; test_nodes.py loses a node meanwhile
]

WORKERS = ("worker-1", "worker-2")
SIZE = ("--num-cpus=2", f"--object-store-memory={256 * 2**20}")
QUICK = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "3000"}
"""A host that is gone is missed after a quarter of a minute in place of a whole one."""
ATTEMPTS = 3
"""Ray gives a node half a minute to join, which may be too little where two cores do everything at once."""
STEPS = 6
SECRET = "5ecre7" * 7


class Submission:
    """``rlhf submit`` on the head, and what it shows, when."""

    def __init__(self, host: Host, folder: Path, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-m", "launch.cli", "submit", *arguments]
        # What the user has in the environment, and the job must not: a secret that is easy to find again.
        self.process = host.start(command, cwd=folder, RAY_AUTH_MODE="token", WANDB_API_KEY=SECRET)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines += iter(self.process.stdout.readline, "")

    def wait_for(self, pattern: str, seconds: float = 400) -> str:
        """The first line that has the pattern, as soon as it is shown."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := next((line for line in list(self.lines) if re.search(pattern, line)), None):
                return found
            assert self.process.poll() is None, self.said
            time.sleep(0.05)
        raise AssertionError(f"{pattern} was never shown:\n{self.said}")

    @property
    def job(self) -> str:
        return self.wait_for(r"^[\w-]+: rlhf \w+ with").partition(":")[0]

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def end(self, seconds: float = 400) -> int:
        code = self.process.wait(timeout=seconds)
        self._reader.join(timeout=10)
        return code


@dataclass(kw_only=True)
class Cluster:
    """The hosts, the folder that the user submits from, and what was seen."""

    hosts: Hosts
    folder: Path
    fresh: dict[str, set[Listener]] = field(default_factory=dict)
    """What listened on each host before any job."""

    @property
    def head(self) -> Host:
        return self.hosts["head"]

    def join(self, name: str) -> None:
        """Have a host join: it gets a copy of the token first."""
        worker = self.hosts[name]
        kept = worker.home / ".ray"
        kept.mkdir(mode=0o700)
        shutil.copy(self.head.home / ".ray" / "auth_token", kept)
        for _ in range(ATTEMPTS):
            code, said = worker.run([f"{ROOT}/launch/worker.sh", self.head.address, worker.address, *SIZE])
            if code == 0:
                return
        raise AssertionError(said)

    def submit(self, name: str, *arguments: str) -> Submission:
        """Submit the small quickstart, whose files are in the user's folder."""
        return Submission(self.head, self.folder, [str(RECIPE), *settings(self.folder, name), *arguments])

    def client(self, *arguments: str, tool: str = "submit") -> tuple[int, str]:
        """``rlhf submit``, or another tool, with these arguments, to its end."""
        command = [sys.executable, "-m", "launch.cli", tool, *arguments]
        return self.head.run(command, RAY_AUTH_MODE="token")

    def status(self, name: str) -> dict[str, Any]:
        """What the run says of itself; empty before PPO."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "runs" / name / "ppo" / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def wait_for(self, name: str, step: int, submission: Submission, seconds: float = 900) -> dict[str, Any]:
        """The run's status when the policy learns in this step or a later one."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            status = self.status(name)
            if (status.get("step") or 0) >= step and status["phase"] == "update":
                return status
            assert submission.process.poll() is None, submission.said
            time.sleep(0.02)
        raise AssertionError(f"{name} did not come to step {step}: {self.status(name)}\n{submission.said}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the page's table."""

    ports: str
    process: str
    """How its name begins; empty for those of a run, which have many names."""
    on: str
    at: str

    def means(self, name: str, listener: Listener, own: str) -> bool:
        """Whether it tells of this, on the host of this name whose own address is ``own``."""
        low, _, high = self.ports.partition("-")
        is_port = self.ports == "other" or int(low) <= listener.port <= int(high or low)
        is_it = is_port and listener.process.startswith(self.process)
        places = {"every interface": "*", "node's address": own, "127.0.0.1": "127.0.0.1"}
        here = {places[place] for place in self.at.split(", ")}
        address = re.sub(r"^\[::ffff:(.*)\]$", r"\1", listener.address)
        return is_it and address in here and self.on in (name, EVERY)


EVERY = "every node"


def page() -> list[Row]:
    """The table of docs/security.md."""
    lines = (ROOT / "docs/security.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:5]] for line in lines if re.match(r"\| (\d|other)", line)]
    return [
        Row(ports=ports, process=process.strip("`") if process.startswith("`") else "", on=on, at=at)
        for ports, process, on, at in cells
    ]


def settings(folder: Path, name: str) -> list[str]:
    """The small run's, with its data given as a user gives files of the folder that she is in."""
    near = [setting.replace(f"{folder}/", "") for setting in overrides(folder, name)]
    return [*near, f"runs_dir={folder}/runs", "recovery.backoff_seconds=0.1"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and two workers, the token on, and a host of somebody who is not one of them."""
    folder, user = tmp_path_factory.mktemp("hosts"), tmp_path_factory.mktemp("user")
    make_data_and_reward(user)
    (user / "examples" / "travel").mkdir(parents=True)
    shutil.copy(ROOT / "examples/travel/guideline.py", user / "examples" / "travel")
    with hosts(folder, ["head", *WORKERS, "stranger"]) as made:
        made_of = Cluster(hosts=made, folder=user)
        start = ["sh", "-c", "umask 077; ray get-auth-token --generate >/dev/null"]
        for command in (start, [f"{ROOT}/launch/head.sh", made_of.head.address, *SIZE]):
            code, said = made_of.head.run(command, **QUICK)  # type: ignore[arg-type]
            assert code == 0, said
        for name in WORKERS:
            made_of.join(name)
        made_of.fresh = {name: made[name].listeners() for name in ("head", *WORKERS)}
        yield made_of


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The first job, which lost a host."""

    said: str
    code: int
    path: Path
    before: dict[str, Any]
    """Its status before that."""
    early: str
    """What was shown while it ran."""
    gone: str
    """The host that went."""


@pytest.fixture(scope="module")
def finished(cluster: Cluster) -> Finished:
    """The whole quickstart. A host with actors goes while the policy learns, and comes again with nothing."""
    submission = cluster.submit("first", f"ppo.steps={STEPS}", "checkpoint.every=2", "rollout.engines=2")
    before = cluster.wait_for("first", 1, submission)
    early = submission.said
    busy = {member["node"] for member in before["members"].values()}
    gone = next(name for name in WORKERS if cluster.hosts[name].address in busy)
    cluster.hosts[gone].end()
    cluster.hosts.all[gone] = cluster.hosts.add(gone)
    cluster.join(gone)
    code = submission.end()
    path = cluster.folder / "runs" / "first"
    return Finished(said=submission.said, code=code, path=path, before=before, early=early, gone=gone)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The second job, which was stopped."""

    code: int
    """Of the command that followed it."""
    said: str
    stop: tuple[int, str]
    seconds: float
    """From the request to its end."""
    path: Path
    before: dict[str, Any]
    busy: dict[str, set[Listener]]
    """What listened on each host while it ran."""
    secret: list[Path]
    """Files of Ray, on any host, with the secret in them."""
    listed: str
    watched: tuple[int, str]
    """What ``rlhf watch`` showed of it while it ran."""


@pytest.fixture(scope="module")
def ended(cluster: Cluster, finished: Finished) -> Ended:
    """REINFORCE++ from the first job's model, scored by the user's function, stopped while the policy learns."""
    given = [
        f"ppo.policy_init={finished.path / 'sft' / 'model'}",
        "rewards={e: {function: 'reward.py:score'}}",
        "algorithm.name=reinforce++",
        "algorithm.critic_warmup_steps=0",
        "placement.policy.ranks=1",
    ]
    submission = cluster.submit("second", "--command", "ppo", *given, "ppo.steps=200", "rollout.engines=3")
    before = cluster.wait_for("second", 2, submission)
    busy = {name: cluster.hosts[name].listeners() for name in ("head", *WORKERS)}
    watched = cluster.client("--job", submission.job, "--once", tool="watch")
    stop = cluster.client("--stop", submission.job)
    seconds = re.search(r"after ([\d.]+) s", stop[1])
    assert seconds, stop[1]
    logs = [cluster.hosts[name].folder / "tmp" for name in ("head", *WORKERS)]
    found = subprocess.run(["grep", "-rlI", SECRET, *map(str, logs)], capture_output=True, text=True, check=False)
    return Ended(
        code=submission.end(),
        said=submission.said,
        stop=stop,
        seconds=float(seconds.group(1)),
        path=cluster.folder / "runs" / "second" / "ppo",
        before=before,
        busy=busy,
        secret=[Path(line) for line in found.stdout.splitlines()],
        listed=cluster.client("--list")[1],
        watched=watched,
    )


def test_the_job_runs_to_its_end_and_its_log_is_followed(finished: Finished) -> None:
    assert finished.code == 0, finished.said
    assert "SFT" in finished.early and "PPO" in finished.said and finished.said.startswith(finished.early)
    assert [row["step"] for row in read_lines(finished.path / "ppo" / "metrics.jsonl")] == list(range(STEPS))


def test_weights_were_published_to_engines_on_other_hosts(finished: Finished, ended: Ended) -> None:
    """A host sees neither the memory nor the temporary files of another; what an engine holds is verified every step.

    Ray spreads actors at random: one of five engines at least is not where the weights come from.
    """
    far = 0
    for members in (finished.before["members"], ended.before["members"]):
        assert len({member["node"] for member in members.values()}) > 1
        here = members["policy rank 0"]["node"]
        far += sum(member["node"] != here for name, member in members.items() if name.startswith("rollout"))
    assert far > 0


def test_a_host_that_is_gone_is_made_up_for(cluster: Cluster, finished: Finished) -> None:
    gone = cluster.hosts[finished.gone].address
    lost = {name for name, member in finished.before["members"].items() if member["node"] == gone}
    events = read_lines(finished.path / "ppo" / "events.jsonl")
    replaced = {event["member"] for event in events if event["kind"] == "actor_replaced"}
    # An engine that still starts when the last step is over was not missed: the other one had answered for it.
    last = cluster.status("first")["members"]
    late = {name for name in lost - replaced if name.startswith("rollout") and last[name]["state"] == "starting"}
    assert lost and lost == (lost & replaced) | late
    assert all(row["rollout/dropped"] == 0 for row in read_lines(finished.path / "ppo" / "metrics.jsonl"))


ON_NODE = """
import socket, sys, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init("auto", log_to_driver=False)
[node] = [node for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == sys.argv[1]]
there = ray.remote(lambda: socket.gethostname()).options(scheduling_strategy=On(node["NodeID"], soft=False))
print(ray.get(there.remote()))
"""


def test_a_host_that_comes_again_is_given_work(cluster: Cluster, finished: Finished) -> None:
    command = [sys.executable, "-c", ON_NODE, cluster.hosts[finished.gone].address]
    code, said = cluster.head.run(command, RAY_AUTH_MODE="token", RAY_ADDRESS=f"{cluster.head.address}:6379")
    assert code == 0 and said.splitlines()[-1] == finished.gone, said


def test_a_run_whose_folder_is_not_shared_is_refused(cluster: Cluster, ended: Ended) -> None:
    """/mnt is every host's own."""
    submission = cluster.submit("apart", "runs_dir=/mnt/runs")
    assert submission.end() == 2, submission.said
    assert "runs_dir = /mnt/runs is not the same folder on every node" in submission.said
    assert all(name in submission.said for name in WORKERS)
    assert not list((cluster.head.folder / "tmp").glob("runs*"))


def test_stop_ends_a_job_within_ten_seconds_with_a_checkpoint(ended: Ended) -> None:
    code, said = ended.stop
    assert code == 0 and "ended with exit code 75" in said and "the last checkpoint is" in said
    assert ended.seconds < 10, said
    assert "Traceback" not in ended.said
    assert list((ended.path / "checkpoints").glob("step_*/manifest.json"))
    assert ended.code == 75, ended.said


def test_jobs_are_listed_with_their_folders(ended: Ended) -> None:
    rows = [line for line in ended.listed.splitlines() if line.startswith(("first-", "second-"))]
    assert [re.sub("-.*", "", row) for row in rows] == ["second", "first"]
    assert "stopped" in rows[0] and str(ended.path.parent) in rows[0] and "succeeded" in rows[1]


def test_a_job_is_watched_by_its_name(ended: Ended) -> None:
    code, said = ended.watched
    assert code == 0 and "of 200" in said and "policy rank 0" in said and "rollout engine 2" in said, said


def test_a_secret_of_the_user_is_nowhere_in_ray(cluster: Cluster, ended: Ended) -> None:
    asked = "from ray.job_submission import *; print(JobSubmissionClient('http://127.0.0.1:8265').list_jobs())"
    code, jobs = cluster.head.run([sys.executable, "-c", asked], RAY_AUTH_MODE="token")
    assert code == 0 and "second-" in jobs and SECRET not in jobs
    assert ended.secret == []


def test_a_stranger_is_refused_on_every_port(cluster: Cluster, ended: Ended) -> None:
    """From another host, and on the host itself by somebody who cannot read the token."""
    for name in ("head", *WORKERS):
        here = cluster.hosts[name]
        ports = sorted(listener.port for listener in cluster.hosts[name].listeners())
        for host, address in ((cluster.hosts["stranger"], here.address), (here, "127.0.0.1")):
            command = [sys.executable, "-m", "tests.launch.stranger", *(f"{address}:{port}" for port in ports)]
            code, said = host.run(command, HOME="/nonexistent")
            assert code == 0, said
            answers = json.loads(said.splitlines()[-1])
            assert {port: told for port, told in answers.items() if told not in ("refused", "unreachable")} == {}
            assert list(answers.values()).count("refused") >= 4


def test_without_the_token_no_job_is_submitted(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "launch.cli", "submit", "--list"]
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    for environment, told in (({}, "it requires a token"), (wrong, "the token is not the cluster's")):
        code, said = cluster.head.run(command, HOME="/nonexistent", **environment)  # type: ignore[arg-type]
        assert code == 2 and told in said


def test_what_listens_is_what_the_page_says(cluster: Cluster, ended: Ended) -> None:
    seen = [
        (name, listener, cluster.hosts[name].address)
        for listeners in (cluster.fresh, ended.busy)
        for name in listeners
        for listener in listeners[name]
    ]
    assert [found for found in seen if not any(row.means(*found) for row in page())] == []
    assert [row for row in page() if not any(row.means(*found) for found in seen)] == [], "nothing listens there"
