"""What the actors of a run import, and the fork server that begins with it when the command begins.

A command imports for itself, checks its recipe, reads its data and starts Ray in some ten seconds. Meanwhile the server
does its actors' imports, which take as long, on another core.
"""

from __future__ import annotations

import os
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from actors.cluster import CLOSED, OWN_RAY, worker_environment
from actors.fork_client import RAYLET, SERVER, WAITING, start_server
from rlhf.config.schema import Recipe, Stage
from rlhf.config.stages import stages_of
from rlhf.device import NVIDIA_GPUS, Device, engine_environment, engine_modules

ROLE_MODULES = ("actors.worker", "rlhf.roles.role")
"""Modules of all roles: with them PyTorch, DeepSpeed and transformers."""
PUBLISHING = ("rlhf.zero.source", "rlhf.weights.sender")
"""Modules with which the policy publishes its weights: with them a part of vLLM."""
JOB, FIRST_JOB = "RAY_JOB_ID", "01000000"
"""Variable of Ray's workers with the id of their job, and that of the only job of a local Ray."""
END_SECONDS = 5.0
"""How long the server has to end before it is killed."""


def modules_of_engine(device: Device, publishes: bool) -> tuple[str, ...]:
    """Modules of an engine's actor: with them vLLM."""
    return ("actors.rollout", *engine_modules(device, publishes))


def modules_of(stages: tuple[str, ...]) -> tuple[str, ...]:
    """Modules of all actors of these stages on CPUs, in the order in which they are awaited.

    Of PPO's actors the engines take longest to start.
    """
    if "ppo" not in stages:
        return ROLE_MODULES
    of_ppo = (*modules_of_engine("cpu", publishes=True), *ROLE_MODULES, *PUBLISHING)
    return of_ppo if stages[0] == "ppo" else tuple(dict.fromkeys((*ROLE_MODULES, *of_ppo)))


@contextmanager
def preloading(recipe: Recipe, command: Stage) -> Iterator[list[int]]:
    """Context in which a server does the imports of the actors of a stage, or of a pipeline, if they will be forked.

    Yields the sessions that are to end with Ray: the server's, if there is one, in which the actors are.

    Its variables are those of the actors. They read ``OMP_NUM_THREADS`` alone later too, by ``torch.set_num_threads``.
    """
    os.environ.pop(SERVER, None)  # another command's, from which this one was given
    if command == "generate" or not _will_fork(recipe):
        yield []
        return
    of_engines = engine_environment("cpu", recipe.rollout, backend=None)
    of_roles = worker_environment(recipe.placement.threads_per_rank, own_ray=True)
    name = f"rlhf-fork-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0{name}")
        listener.listen(WAITING)
        modules = modules_of(stages_of(recipe, command))
        server = start_server(listener, {**environment_of_ray(), **of_engines, **of_roles}, modules, has_session=True)
    os.environ[SERVER] = name  # which Ray passes on to the clients
    try:
        yield [server.pid]
    finally:
        del os.environ[SERVER]
        _end(server)


def environment_of_ray() -> dict[str, str]:
    """Environment of a worker of the local Ray that is to come: Ray's library reads it once, when it is imported.

    The raylet is not known yet: when it ends, the server ends its processes.
    """
    own = {**OWN_RAY, JOB: FIRST_JOB, RAYLET: str(os.getpid())}
    return {"RAY_AUTH_MODE": "token", **CLOSED, **os.environ, **own}


def _will_fork(recipe: Recipe) -> bool:
    """Whether the actors are forked, as far as is known before PyTorch looks for GPUs."""
    place = recipe.placement
    is_on_cpus = place.device != "cuda" and not any(NVIDIA_GPUS.glob("*"))
    return is_on_cpus and place.ray_address is None and place.start_method != "spawn"


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
