"""Tests that every error of Ray is attributed to its actor, or to none: real errors of processes, and Ray's classes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray import exceptions
from ray.exceptions import RayError, RayTaskError

from actors.ray_errors import translate_error
from actors.waiting import AnswerDeadlines, PhaseContext, fetch
from rlhf.config.schema import Recipe
from rlhf.errors import LostError, MachineryError, RLHFError, UserError
from rlhf.recovery.diagnosis import Cause, diagnose
from rlhf.recovery.facts import Facts

ROOT = Path(__file__).parents[2]
CONTEXT, NAME = PhaseContext(phase="update", step=7), "policy rank 3"
OBJECT = ("00ff", b"", "")
"""Of an object that is lost: its id, its owner's address, and where it was made."""
KILLED = """2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, ID: 0018) was \
4.89GB used / 23.59GB limit (0.207513)
OOM kill reason: Memory usage 5255315456B exceeded threshold of 5229469696B (20.6% of 25325268992B limit)
Considered workers: [
Selected to kill: (Actor(56): job ID=01, task name=A.__init__, required resources={}, pid=7531, actual memory used=0.06GB, worker ID=69)
Selected to kill: (Actor(6f): job ID=01, task name=A.__init__, required resources={}, pid=7532, actual memory used=2.83GB, worker ID=87)
]"""  # noqa: E501  # as Ray 2.60 said it, ids shortened

DIED: list[RayError] = [
    exceptions.ActorDiedError(),
    exceptions.ActorUnavailableError("the connection broke", None),
    exceptions.OutOfMemoryError(KILLED),
    exceptions.WorkerCrashedError(),
    exceptions.NodeDiedError("the node is dead"),
    exceptions.LocalRayletDiedError(),
    exceptions.ActorUnschedulableError("its node is dead"),
    exceptions.ActorPlacementGroupRemoved(),
    exceptions.RuntimeEnvSetupError("no space left"),
]
UNREADABLE: list[RayError] = [
    exceptions.RaySystemError("the worker did not start"),
    exceptions.UnserializableException("Traceback: gone"),
    exceptions.TaskCancelledError(),
    exceptions.OutOfDiskError(),
    exceptions.ObjectStoreFullError(),
    RayError("something new"),
]
OBJECTS: list[RayError] = [
    exceptions.ObjectLostError(*OBJECT),
    exceptions.OwnerDiedError(*OBJECT),
    exceptions.ObjectFetchTimedOutError(*OBJECT),
    exceptions.ReferenceCountingAssertionError(*OBJECT),
    exceptions.ObjectFreedError(*OBJECT),
    exceptions.ObjectReconstructionFailedError(OBJECT[0]),
]


def loss(error: RayError) -> LostError:
    own = translate_error(error, NAME, CONTEXT)
    assert isinstance(own, LostError) and "during update of step 7" in str(own)
    return own


def kind(error: RayError) -> str:
    return type(error).__name__


@pytest.mark.parametrize("error", DIED, ids=kind)
def test_where_a_process_is_gone_it_is_that_of_the_actor_that_owes_the_answer(error: RayError) -> None:
    assert (loss(error).names, loss(error).kind) == ((NAME,), "died")


@pytest.mark.parametrize("error", UNREADABLE, ids=kind)
def test_an_answer_that_cannot_be_read_is_a_loss_of_the_actor_that_gave_it(error: RayError) -> None:
    assert (loss(error).names, loss(error).kind) == ((NAME,), "failed")


@pytest.mark.parametrize("error", OBJECTS, ids=kind)
def test_a_lost_object_says_nothing_of_who_is_at_fault(error: RayError) -> None:
    assert loss(error).names == ()


@pytest.mark.parametrize("error", [*DIED, *UNREADABLE[:-1], *OBJECTS], ids=kind)
def test_whoever_was_given_a_failure_is_innocent_of_it(error: RayError) -> None:
    given: RayTaskError = RayTaskError("assemble", "traceback", error)
    assert loss(given).names == loss(RayTaskError("again", "traceback", given)).names == ()


@pytest.mark.parametrize(
    "own", [UserError("wrong", "why", "fix"), LostError("gone", ("critic rank 0",), "died"), MachineryError("a bug")]
)
def test_what_an_actor_raised_on_purpose_is_passed_on_through_those_that_were_given_it(own: RLHFError) -> None:
    assert translate_error(RayTaskError("a", "", RayTaskError("b", "", own)), NAME, CONTEXT) is own


def test_a_file_that_an_actor_could_not_write_is_named_with_the_way_on() -> None:
    error = OSError(28, "No space left on device (0.0 MiB of 1.0 GiB free)", "/runs/x/ppo/model.safetensors")
    told = translate_error(RayTaskError("save", "Traceback\nOSError: [Errno 28]", error), NAME, CONTEXT)
    assert type(told) is MachineryError and told.may_pass
    assert "/runs/x/ppo/model.safetensors cannot be written: No space left on device (0.0 MiB" in str(told)
    assert "Free space there" in str(told) and str(told).endswith("give the same command")


def test_ray_s_own_full_disk_says_where_ray_writes() -> None:
    assert "/tmp/ray: free space there" in loss(exceptions.OutOfDiskError()).reason
    assert "/tmp/ray" not in loss(exceptions.ObjectStoreFullError()).reason


def test_an_error_of_a_device_that_was_raised_outside_of_a_roles_call_is_a_loss_and_a_bug_is_none() -> None:
    """Its text has several lines, of which the first one names it."""
    text = "CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA`.\n"
    error = loss(RayTaskError("spans", "traceback", torch.AcceleratorError(text)))
    assert (error.names, error.kind) == ((NAME,), "failed")
    assert error.message.endswith("AcceleratorError: CUDA error: an illegal memory access was encountered")
    bug = translate_error(RayTaskError("spans", "Traceback\nKeyError: 'x'", KeyError("x")), NAME, CONTEXT)
    assert isinstance(bug, MachineryError) and not isinstance(bug, LostError)


def test_the_memory_monitor_is_named_with_its_figures_and_what_to_do() -> None:
    error = loss(exceptions.OutOfMemoryError(KILLED))
    assert error.message == (
        "policy rank 3 died during update of step 7: Ray's memory monitor killed it: node 127.0.0.1 had 4.89GB used / "
        "23.59GB limit, threshold 4.87GB; killed there: process 7531 (0.06GB), process 7532 (2.83GB)"
    )
    found = diagnose(Facts(alive=False, exit_text=error.message))
    assert found.cause is Cause.MEMORY_MONITOR and "RAY_memory_usage_threshold" in found.advice
    other = loss(exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."))
    assert other.message.endswith("killed it: Task was killed due to the node running low on memory.")


class Unreadable:
    def __reduce__(self) -> Any:
        return int, ("no number",)


class UnreadableError(Exception):
    def __reduce__(self) -> Any:
        return int, ("no number",)


class UnsendableError(Exception):
    def __init__(self) -> None:
        super().__init__("it holds a lock")
        self.lock = threading.Lock()


class Actor:
    """Actor whose answers cannot be sent or read."""

    def answer(self) -> Unreadable:
        return Unreadable()

    def fail(self) -> None:
        raise UnreadableError("the reason")

    def fail_unsendably(self) -> None:
        raise UnsendableError

    def exit(self) -> None:
        os._exit(3)

    def take(self, what: Any) -> None:
        """What it is given is lost."""


@pytest.mark.parametrize(
    ("method", "how", "said"),
    [
        ("answer", "failed", "invalid literal for int"),
        ("fail", "failed", "UnserializableException"),
        ("fail_unsendably", "failed", "isn't serializable"),
        ("exit", "died", "Worker (unexpectedly )?exits"),
    ],
)
def test_real_errors_of_real_actors_name_the_actor_and_not_those_that_were_given_them(
    local_ray: None, method: str, how: str, said: str
) -> None:
    deadlines = AnswerDeadlines(Recipe(name="x"))
    make = ray.remote(Actor).options(num_cpus=0)
    actor, peer = make.remote(), make.remote()
    ref = getattr(actor, method).remote()
    with pytest.raises(LostError, match=said) as caught:
        fetch(ref, NAME, CONTEXT, deadlines)
    assert (caught.value.names, caught.value.kind) == ((NAME,), how)
    with pytest.raises(LostError, match="critic rank 0") as caught:
        fetch(peer.take.remote(ref), "critic rank 0", CONTEXT, deadlines)
    assert caught.value.names == () or method == "fail_unsendably"  # Ray does not say in whose process that was


MONITORED = """
import os, time
from rlhf.recovery.facts import host_memory
total, available = host_memory()
os.environ["RAY_memory_usage_threshold"] = str((total - available + 3 * 2**30) / total)
os.environ["RAY_memory_monitor_refresh_ms"] = "100"
import ray
from actors.cluster import cluster
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext, fetch
from actors.worker import HEARTBEAT, Worker
from rlhf.config.schema import Recipe
from rlhf.errors import LostError
from pathlib import Path

class Hungry:
    def eat(self):
        held = []
        while True:
            held.append(bytearray(b"x" * 2**28))
            time.sleep(0.02)

ray.cloudpickle.register_pickle_by_value(__import__("__main__"))
name, context = "policy rank 0", PhaseContext(phase="update", step=7)
events = []
with cluster(None):
    supervisor = Supervisor(Recipe(name="x"), lambda kind, **details: events.append({"kind": kind, **details}))
    actor_class = ray.remote(concurrency_groups={HEARTBEAT: 1})(Worker).options(num_cpus=0)
    worker = actor_class.remote(name, Path("log").resolve())
    supervisor.started(name, worker)
    supervisor.built(ray.get(worker.build.remote(Hungry)))
    for _ in range(2):  # it is the answer to all that the actor is asked from now on
        try:
            fetch(worker.call.remote("eat"), name, context, supervisor.deadlines)
        except LostError as error:
            loss = error
            print(loss.names, loss.kind)
    print(supervisor.with_dead_actors(LostError("nobody knows")).names)
    supervisor.handle_loss(loss, context)
print(events[0]["cause"], "|", events[0]["what"])
"""


@pytest.mark.slow  # what other processes take of the memory decides when the monitor strikes
def test_an_actor_that_the_memory_monitor_kills_is_named_and_told(tmp_path: Path) -> None:
    """The monitor itself, in a Ray of its own whose threshold is three gigabytes away."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", MONITORED], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if not line.startswith(("policy", "\x1b"))]
    assert lines[:3] == ["('policy rank 0',) died"] * 2 + ["('policy rank 0',)"], done.stdout
    assert lines[3].startswith("Ray's memory monitor killed it: its node ran low on memory | Ray's memory monitor")
    assert "GB used / " in lines[3] and "killed there: process " in lines[3]
