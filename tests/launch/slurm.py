"""A SLURM cluster of two hosts: real daemons from the distribution's packages, with all their files in one folder.

Each node offers two GPUs as generic resources (GRES): files in their place. Where this machine has the kernel's control
groups of version 1, jobs are confined by them to the cores, the memory and the devices that they asked for.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.launch.hosts import ROOT, Host, hosts
from tests.launch.hosts import why_not as why_no_hosts

NODES = ("n1", "n2")
DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch")
CONFIGURATION = """
ClusterName=test
SlurmctldHost=n1({head})
SlurmUser=root
AuthType=auth/munge
# A job that was put back waits until its credential has expired.
AuthInfo=socket=/mnt/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile=/mnt/slurmctld.pid
SlurmdPidFile=/mnt/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{confinement}
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,bf_interval=1
# What preempts a job sends it the signal that it asked for.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=5
MailProg=/bin/true
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=120
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""
GPUS = ("7", "11")
"""Stand-ins for the GPUs of a node: minor numbers of memory devices that no program of a job opens (full, kmsg)."""
MEMORY_MIB = 3000
"""Memory of a node, which jobs are confined to."""
FREE = "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none"
CONFINED = "ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup"
CGROUPS = """
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainCores=yes
ConstrainRAMSpace=yes
ConstrainSwapSpace=no
ConstrainDevices=yes
"""
CONTROLLERS = ("cpuset", "memory", "devices", "freezer", "cpuacct")
GROUPS = Path("/sys/fs/cgroup")
MUNGE = [f"--{kind}=/mnt/munge.{kind}" for kind in ("socket", "pid-file", "log-file", "seed-file")]
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}


def why_not() -> str:
    """Reason why SLURM cannot run here; empty if it can."""
    missing = [name for name in DAEMONS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    return f"there is no {', '.join(missing)}: tests/system_packages.sh" if missing else why_no_hosts()


class Slurm:
    """The two hosts, with a user's commands on the first."""

    def __init__(self, folder: Path, head: Host) -> None:
        self.folder, self.head = folder, head
        self.project = folder / "project"
        """The project's folder, in which jobs are submitted."""
        self.project.mkdir()
        for name in ("launch", "rlhf", "actors", "examples", "recipes"):
            (self.project / name).symlink_to(ROOT / name)

    def run(self, *command: str, **environment: str) -> str:
        """Run a SLURM command; returns its output."""
        environment["SLURM_CONF"] = str(self.folder / "slurm.conf")
        code, output = self.head.run(command, cwd=self.project, **environment)
        assert code == 0, output
        return output

    def submit(self, *arguments: str, **environment: str) -> int:
        """Submit a job; returns its number."""
        return int(self.run("sbatch", "--parsable", f"--output={self.folder}/%j.out", *arguments, **environment))

    def job(self, number: int) -> dict[str, str]:
        """SLURM's fields of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", str(number), "--oneliner")))

    def wait(self, number: int, seconds: float = 400) -> dict[str, str]:
        """Wait for the job's end; returns its fields."""
        end = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] not in OVER:
            assert time.monotonic() < end, self.output(number)
            time.sleep(0.5)
        return job

    def wait_for(self, number: int, path: Path, seconds: float = 400) -> None:
        """Wait until the job has created a file."""
        end = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < end, self.output(number)
            time.sleep(0.1)

    def output(self, number: int) -> str:
        """Output of the job, and its nodes."""
        logs = [self.folder / f"{number}.out", *sorted((self.project / ".slurm" / str(number)).glob("*.log"))]
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs if log.exists())


def has_groups() -> bool:
    """Whether control groups of version 1 can be made here."""
    return all(os.access(GROUPS / name / "cgroup.procs", os.W_OK) for name in CONTROLLERS)


def _confine(host: Host) -> Iterator[Path]:
    """Give a host control groups of its own: those of two nodes would have the same names. Yields what to remove."""
    for name in CONTROLLERS:
        own = GROUPS / name / f"rlhf-{os.getpid()}-{host.name}"
        own.mkdir()
        yield own
        if name == "cpuset":
            for file in ("cpuset.cpus", "cpuset.mems"):
                (own / file).write_text((GROUPS / name / file).read_text())
        _run(host, "mount", "--bind", str(own), str(GROUPS / name))


def _remove(group: Path) -> None:
    """Remove a control group, and those in it, once their processes have ended."""
    for inner in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
        with suppress(OSError):
            inner.rmdir()
    with suppress(OSError):
        group.rmdir()


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Run the block with a SLURM of two hosts."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    (folder / "state").mkdir()
    groups = list[Path]()
    with ExitStack() as ends:
        ends.callback(lambda: [_remove(group) for group in groups])  # after the hosts have ended
        made = ends.enter_context(hosts(folder, NODES))
        has = f"CPUs=2 RealMemory={MEMORY_MIB} Gres=gpu:{len(GPUS)}"
        nodes = "\n".join(f"NodeName={name} NodeAddr={made[name].address} {has}" for name in NODES)
        confinement = CONFINED if has_groups() else FREE
        text = CONFIGURATION.format(folder=folder, head=made["n1"].address, nodes=nodes, confinement=confinement)
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text(f"Name=gpu File=/mnt/gpu[0-{len(GPUS) - 1}]\n")
        if has_groups():
            (folder / "cgroup.conf").write_text(CGROUPS)
            for name in NODES:
                groups.extend(_confine(made[name]))
        for name in NODES:
            for number, device in enumerate(GPUS):
                _run(made[name], "mknod", "-m", "666", f"/mnt/gpu{number}", "c", "1", device)
        for name in NODES:
            _run(made[name], "munged", "--force", f"--key-file={key}", *MUNGE)
        _run(made["n1"], "slurmctld", "-f", f"{folder}/slurm.conf")
        for name in NODES:
            _run(made[name], "slurmd", "-f", f"{folder}/slurm.conf")
        yield Slurm(folder, made["n1"])


def _run(host: Host, *command: str) -> None:
    code, output = host.run(command)
    assert code == 0, output
