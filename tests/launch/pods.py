"""The pods of a RayJob on hosts of this machine, as KubeRay would start them: the containers' commands, environment and
hooks as shipped, and folders for the volumes.

KubeRay's part is repeated here: it starts Ray from ``rayStartParams`` and the limits of the container, and submits the
entry point from another pod. https://github.com/ray-project/kuberay
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.launch.hosts import ROOT, Host, hosts

PROJECT = Path("/opt/rlhf")
CODE = ("launch", "rlhf", "actors", "examples", "recipes")
TOKEN = "70" * 32
Resource = Mapping[str, Any]
STATUS = """
import json, sys
from ray.job_submission import JobSubmissionClient
jobs = {job.submission_id: job for job in JobSubmissionClient("http://127.0.0.1:8265").list_jobs()}
job = jobs.get(sys.argv[1])  # it may not have been submitted yet
print(json.dumps(["PENDING", None] if job is None else [job.status.value, job.driver_exit_code]))
"""


@dataclass(kw_only=True)
class Pods:
    """The pods of one RayJob: a head, a worker, and the submitter's, each a host."""

    job: Resource
    folder: Path
    head: Host
    worker: Host
    submitter: Host
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def volume(self, name: str) -> Path:
        """Folder that stands for a persistent volume."""
        return self.folder / "volumes" / name

    def start(self) -> None:
        """Start Ray in both pods, and wait until the head's dashboard answers."""
        cluster = self.job["spec"]["rayClusterSpec"]
        groups = ((self.head, cluster["headGroupSpec"]), (self.worker, cluster["workerGroupSpecs"][0]))
        for host, group in groups:
            self._mount(host, group["template"]["spec"])
            code, said = host.run(["ip", "link"])
            assert code == 0, said
            output = (self.folder / f"{host.name}.out").open("w")
            start = ["bash", "-c", _ray_start(host is self.head, group, self.head.address)]
            self.started.append(host.start(inside(*start), output=output, **self._environment(host, group)))
            if host is self.head:
                self._wait_for_head()
        self._mount(self.submitter, {"containers": [{}], "volumes": []})

    def submit(self, submission: str, entrypoint: str | None = None) -> subprocess.Popen[str]:
        """Submit the entry point from the submitter's pod, which then shows the job's log until it ends."""
        address = f"http://{self.head.address}:8265"
        line = entrypoint or self.job["spec"]["entrypoint"].strip()
        shell = (
            f"if ! ray job status --address {address} {submission} >/dev/null 2>&1 ; then ray job submit --address "
            f"{address} --no-wait --submission-id {submission} -- {line} ; fi ; "
            f"ray job logs --address {address} --follow {submission}"
        )
        output = (self.folder / f"{submission}.out").open("w")
        return self.submitter.start(inside("bash", "-c", shell), output=output, **_token())

    def status(self, submission: str) -> tuple[str, int | None]:
        """Ray's status and exit code of a job, as KubeRay reads them."""
        code, said = self.head.run(inside("python", "-c", STATUS, submission), **_token())
        assert code == 0, said
        state, exit_code = json.loads(said.splitlines()[-1])
        return state, exit_code

    def wait_for(self, submission: str, seconds: float = 420) -> tuple[str, int | None]:
        """The same once the job has ended."""
        end = time.monotonic() + seconds
        while (found := self.status(submission))[0] in ("PENDING", "RUNNING"):
            assert time.monotonic() < end, self.log(submission)
            time.sleep(1)
        return found

    def leave(self, host: Host) -> tuple[int, str]:
        """Run a pod's preStop hook, as the kubelet does before it sends a signal."""
        cluster = self.job["spec"]["rayClusterSpec"]
        group = cluster["headGroupSpec"] if host is self.head else cluster["workerGroupSpecs"][0]
        [container] = group["template"]["spec"]["containers"]
        hook = container["lifecycle"]["preStop"]["exec"]["command"]
        return host.run(inside(*hook), seconds=200, **self._environment(host, group))

    def job_log(self, submission: str) -> str:
        """What a job printed, from Ray."""
        command, address = inside("ray", "job", "logs", submission), "http://127.0.0.1:8265"
        return self.head.run(command, RAY_ADDRESS=address, **_token())[1]

    def log(self, submission: str) -> str:
        """What a job and the nodes printed."""
        files = sorted(self.folder.glob("*.out"))
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-4000:]}" for file in files)

    def _mount(self, host: Host, spec: Resource) -> None:
        """Mount the image's project and the pod's volumes, at the places of its container."""
        lines = ["mount -t tmpfs tmpfs /opt", f"mkdir {PROJECT}", f"mount --bind {self.folder}/image {PROJECT}"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for mount in spec["containers"][0].get("volumeMounts", ()):
            volume, place = volumes[mount["name"]], mount["mountPath"]
            if "emptyDir" in volume:
                size = volume["emptyDir"]["sizeLimit"].replace("Gi", "g")
                lines.append(f"mount -t tmpfs -o size={size} tmpfs {place}")
            else:
                claim = volume["persistentVolumeClaim"]["claimName"]
                lines.append(f"mount --bind {self.volume(claim)} {place}")
        code, said = host.run(["sh", "-ec", "\n".join(lines)])
        assert code == 0, said

    def _environment(self, host: Host, group: Resource) -> dict[str, str]:
        [container] = group["template"]["spec"]["containers"]
        given = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
        address = "127.0.0.1" if host is self.head else self.head.address
        return {**given, **_token(), "RAY_ADDRESS": f"{address}:6379", "RAY_PORT": "6379"}

    def _wait_for_head(self) -> None:
        end = time.monotonic() + 120
        while self.head.run(inside("ray", "job", "list"), RAY_ADDRESS="http://127.0.0.1:8265", **_token())[0]:
            assert time.monotonic() < end, self.log("")
            time.sleep(1)


def inside(*command: str) -> list[str]:
    """A command in the project's folder of a pod, which is mounted on its host alone."""
    return ["sh", "-c", 'cd "$0" && exec "$@"', str(PROJECT), *command]


def _token() -> dict[str, str]:
    """What KubeRay adds to every container where ``authOptions.mode`` is ``token``."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


def _ray_start(is_head: bool, group: Resource, head: str) -> str:
    """KubeRay's command of a container."""
    [container] = group["template"]["spec"]["containers"]
    limits, parameters = container["resources"]["limits"], dict(group["rayStartParams"])
    parameters |= {"block": "true", "dashboard-agent-listen-port": "52365", "metrics-export-port": "8080"}
    parameters.setdefault("num-cpus", limits["cpu"])
    if not is_head:
        parameters["address"] = f"{head}:6379"
    flags = [f"--{name}" if value == "true" else f"--{name}={shlex.quote(value)}" for name, value in parameters.items()]
    return f"ulimit -n 65536; ray start {'--head ' if is_head else ''}{' '.join(flags)}"


def make_image(folder: Path, volumes: Sequence[str]) -> None:
    """The project as the image has it, and folders for the volumes."""
    image = folder / "image"
    for name in ("runs", "data"):
        (image / name).mkdir(parents=True)
    for name in CODE:
        (image / name).symlink_to(ROOT / name)
    (image / ".venv").symlink_to(sys.prefix)
    for name in volumes:
        (folder / "volumes" / name).mkdir(parents=True)


@contextmanager
def pods(folder: Path, job: str) -> Iterator[Pods]:
    """Run the block with the pods of a RayJob; ``make_image`` has filled the folder."""
    with hosts(folder, ["head", "worker", "submitter"]) as made:
        resource = yaml.safe_load(job)
        there = Pods(job=resource, folder=folder, head=made["head"], worker=made["worker"], submitter=made["submitter"])
        there.start()
        yield there
