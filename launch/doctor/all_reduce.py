"""A short all-reduce over real devices, in a separate program, so that a hang or crash of NCCL stays there.

``python -m launch.doctor.all_reduce '<AllReducePlan as JSON>'``: the process with rank 0 prints one line of JSON,
``AllReduceResult``; processes on other nodes print nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from launch.doctor.findings import Fault, shortened
from rlhf.process_identity import kill_group

if TYPE_CHECKING:
    from torch import Tensor

MIB = 2**20
"""Bytes of a mebibyte."""
ROUNDS = 5
"""Number of timed all-reduces, after a first one that is not timed."""


@dataclass(frozen=True, kw_only=True)
class AllReducePlan:
    """The participants: ``local`` ranks of this node, from rank ``first`` of ``world`` on."""

    local: int
    rendezvous: str
    """URL of the rendezvous, as for torch.distributed."""
    first: int = 0
    world: int | None = None
    """Number of ranks on all nodes; by default this node's."""
    backend: str = "nccl"
    size: int = 64 * MIB
    """Bytes of each rank's buffer."""
    seconds: float = 60.0
    """Timeout of torch.distributed: longest time that ranks wait for each other, at the rendezvous or in all-reduce."""

    @property
    def ranks(self) -> int:
        """Number of ranks on all nodes."""
        return self.local if self.world is None else self.world


@dataclass(frozen=True, kw_only=True)
class AllReduceResult:
    """Result of a correct all-reduce, with its speed."""

    ranks: int
    seconds: float
    """Seconds of one all-reduce after the first."""
    bandwidth: float
    """Bus bandwidth as defined by nccl-tests, in bytes per second: 2 (n − 1)/n times the size over the time."""
    version: str
    """NCCL's version; empty for another backend."""


def run_apart(plan: AllReducePlan, seconds: float) -> AllReduceResult | Fault:
    """Run a plan in separate processes.

    On nodes without rank 0 the outcome has no measurement: 0 seconds and bandwidth.

    Args:
        seconds: deadline of the whole program, including imports and the start of CUDA; then it is killed.
            ``plan.seconds`` bounds only the waits of ranks for each other.
    """
    command = [sys.executable, "-m", "launch.doctor.all_reduce", json.dumps(asdict(plan))]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            kill_group(process)
            return Fault(reason=f"no answer within {seconds:.0f} s")
    if process.returncode == 0:
        return AllReduceResult(**json.loads(out.splitlines()[-1])) if plan.first == 0 else _participation(plan)
    return Fault(reason=_last_line(err) or f"ended with {process.returncode}")


def _participation(plan: AllReducePlan) -> AllReduceResult:
    """Result on a node without rank 0, which has no measurement."""
    return AllReduceResult(ranks=plan.ranks, seconds=0.0, bandwidth=0.0, version="")


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return shortened((errors or lines or [""])[-1])


def main() -> None:
    """Start the ranks of this node and wait for them; a single rank runs in this process."""
    plan = AllReducePlan(**json.loads(sys.argv[1]))
    if plan.local == 1:
        _rank(0, plan)
        return
    from torch.multiprocessing.spawn import start_processes

    start_processes(_rank, args=(plan,), nprocs=plan.local)


def _rank(index: int, plan: AllReducePlan) -> None:
    import torch
    import torch.distributed as group

    from rlhf.zero.process_group import IS_TCP, connect_store

    rank, on_gpus = plan.first + index, plan.backend == "nccl"
    device = torch.device("cuda", index) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    across_hosts = plan.rendezvous.startswith(IS_TCP)
    group.init_process_group(
        plan.backend,
        init_method=None if across_hosts else plan.rendezvous,
        store=connect_store(plan.rendezvous, rank, plan.ranks, plan.seconds) if across_hosts else None,
        rank=rank,
        world_size=plan.ranks,
        timeout=timedelta(seconds=plan.seconds),
    )
    seconds = _seconds(torch.full((plan.size // 4,), float(rank + 1), device=device), plan.ranks)
    if rank == 0:
        version = ".".join(str(part) for part in torch.cuda.nccl.version()) if on_gpus else ""
        bandwidth = 2 * (plan.ranks - 1) / plan.ranks * plan.size / seconds
        print(
            json.dumps(asdict(AllReduceResult(ranks=plan.ranks, seconds=seconds, bandwidth=bandwidth, version=version)))
        )
    group.destroy_process_group()


def _seconds(numbers: Tensor, ranks: int) -> float:
    """Seconds of one all-reduce. The first one also connects, and its sum is checked.

    Raises:
        ArithmeticError: the sum is wrong.
    """
    import torch
    import torch.distributed as group

    group.all_reduce(numbers)
    expected = ranks * (ranks + 1) / 2
    if not bool((numbers == expected).all()):
        raise ArithmeticError(f"the sum over {ranks} ranks is wrong: {numbers[0].item()}, not {expected}")
    begin = time.perf_counter()
    for _ in range(ROUNDS):
        group.all_reduce(numbers)
    if numbers.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / ROUNDS


if __name__ == "__main__":
    main()
