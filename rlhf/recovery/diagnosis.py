"""Derives the likely cause of a process's failure from facts about it, with advice.

The order of the rules matters: counts of the kernel and explicit messages take precedence over inference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from rlhf.recovery.facts import Facts

FRESH_SECONDS = 30.0
"""Oldest heartbeat of a healthy process: native code may hold the interpreter for some seconds."""
SHORT_OF_MEMORY = 0.03
"""Fraction of available memory under which a host spends its time on reclaiming memory."""


class Cause(StrEnum):
    """Why a process failed or does not answer, as text for messages."""

    MEMORY_MONITOR = "Ray's memory monitor killed it: its node ran low on memory"
    HOST_MEMORY = "the host ran out of memory"
    GPU_MEMORY = "the GPU ran out of memory"
    GPU_ECC = "the GPU's memory has an uncorrectable error (ECC)"
    GPU_ACCESS = "a kernel accessed GPU memory outside its tensors"
    GPU_ASSERT = "an assertion in a GPU kernel failed: usually an index beyond the end of a tensor"
    GPU = "the GPU or its driver failed"
    NCCL = "NCCL failed: the network between the ranks, or another rank's process"
    SHARED_MEMORY = "it could not use memory that it had mapped (SIGBUS): /dev/shm is full, or was"
    CRASHED = "it crashed in native code"
    ENGINE = "the inference engine failed"
    PEER = "it lost another rank of its group"
    KILLED = "it was killed by a signal"
    NODE = "its node is gone"
    SILENT = "it ended without a message: killed (SIGKILL leaves no trace), or ended by native code"
    STOPPED = "the process is stopped (SIGSTOP, or a debugger)"
    DISK = "it waits for a disk, a network file system or a device"
    STUCK = "it runs but sends no heartbeat: stuck in native code, or in a deadlock"
    BUSY = "it is busy: its work takes longer than the deadline"
    UNKNOWN = "not known"


ADVICE: dict[Cause, str] = {
    Cause.MEMORY_MONITOR: "fewer processes on that node, a smaller rollout.memory_gib, no offload, or a node with more "
    "memory; RAY_memory_usage_threshold, set where Ray is started, moves the limit",
    Cause.HOST_MEMORY: "fewer processes on this host, a smaller rollout.memory_gib, no offload, or a host with more "
    "memory (dmesg shows whom the kernel killed)",
    Cause.GPU_MEMORY: "a smaller placement.<role>.micro_batch_tokens or rollout.gpu_memory_fraction, a higher "
    "zero_stage, or model.gradient_checkpointing",
    Cause.GPU_ECC: "nvidia-smi -q -d ECC,ROW_REMAPPER on that node shows the count; take the node out of the cluster "
    "until its GPU was reset or replaced",
    Cause.GPU_ACCESS: "if it is always the same node, take that node out; if not, a kernel has a bug: packages and "
    "driver should be of the pinned versions, and CUDA_LAUNCH_BLOCKING=1 makes the log name the kernel",
    Cause.GPU_ASSERT: "its log in the run's logs/ has the assertion; check token ids against the model's vocabulary, "
    "and lengths against its positions; CUDA_LAUNCH_BLOCKING=1 makes the log name the kernel",
    Cause.GPU: "dmesg on that node has the driver's message (NVRM: Xid); if it is always the same node, take it out",
    Cause.NCCL: "NCCL_DEBUG=INFO, set where Ray is started, names the network in the ranks' logs; check the links "
    "between the nodes, and NCCL_SOCKET_IFNAME",
    Cause.SHARED_MEMORY: "remove what other programs have left in /dev/shm on that node, remount it larger, or give "
    "the container a larger --shm-size",
    Cause.CRASHED: "its log in the run's logs/ ends with the stack; packages and driver should be of the pinned "
    "versions",
    Cause.ENGINE: "its log in the run's logs/ says why; often memory: a smaller rollout.memory_gib or "
    "rollout.gpu_memory_fraction",
    Cause.PEER: "nothing here: look at the other rank's line",
    Cause.KILLED: "find out who sent it: a scheduler, an administrator, a script that cleans up",
    Cause.NODE: "check that machine; the run needs another one in its place",
    Cause.SILENT: "see the end of its log in the run's logs/, and dmesg on its node",
    Cause.STOPPED: "find out who stops processes there: a debugger, or a scheduler that suspends jobs",
    Cause.DISK: "check the file systems that it reads and writes (df, dmesg, the file server); it cannot even be "
    "killed before they answer",
    Cause.STUCK: "kill -USR1 <process> writes the stacks of its threads to its log in the run's logs/",
    Cause.BUSY: "raise recovery.stall_floor_seconds, and placement.phase_timeout_seconds if it is the shorter; for "
    "work that goes on, recovery.progress_limit_seconds",
    Cause.UNKNOWN: "see its log in the run's logs/",
}
"""What to do about each cause, in one line."""
DEVICE_CAUSES = frozenset({Cause.GPU_MEMORY, Cause.GPU_ECC, Cause.GPU_ACCESS, Cause.GPU_ASSERT, Cause.GPU, Cause.NCCL})
"""Failures of a GPU or of the network between GPUs, which have a budget of their own (``recovery.device_errors``)."""

GUESSES = re.compile(
    r"(?:Some common causes include:|There are some potential root causes).*?(?:unexpected errors?\.|\Z)", re.DOTALL
)
"""Ray's list of possible causes, which it adds to every message and which therefore is no evidence."""
SILENCE = re.compile(r"connection error code|worker process has died(?!.*exit code)", re.DOTALL)
"""Ray's messages when it saw only the end of a connection; the second one if the text was cut off."""
EXPLICIT: tuple[tuple[Cause, re.Pattern[str]], ...] = tuple(
    (cause, re.compile(pattern, re.IGNORECASE))
    for cause, pattern in (
        (Cause.GPU_MEMORY, r"(?:CUDA|HIP) (?:error: )?out of memory|CUBLAS_STATUS_ALLOC_FAILED"),
        (Cause.MEMORY_MONITOR, r"memory monitor killed|running low on memory"),
        (Cause.HOST_MEMORY, r"can(?:no|')t allocate memory|std::bad_alloc|\b(?:_Array)?MemoryError\b"),
        (Cause.GPU_ECC, r"uncorrectable ECC|\bECC error"),
        (Cause.GPU_ACCESS, r"illegal memory access|misaligned address|illegal address space"),
        (Cause.GPU_ASSERT, r"device-side assert triggered"),
        (Cause.NCCL, r"nccl\w*Error|NCCL error|NCCL.{0,200}(?:unhandled|remote process exited)"),
        (
            Cause.GPU,
            r"AcceleratorError|(?:CUDA|cuDNN|Triton) error|(?:CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_|"
            r"unspecified launch failure|\bNVRM: Xid",
        ),
        (Cause.SHARED_MEMORY, r"SIGBUS|Bus error"),
        (Cause.CRASHED, r"SIGSEGV|SIGILL|SIGFPE|SIGABRT|Segmentation fault|Fatal Python error"),
        (Cause.NODE, r"NodeDiedError|its node has died|node was terminated|node (?:is|was) (?:dead|lost)"),
        (Cause.ENGINE, r"\bvLLM failed"),
        (
            Cause.PEER,
            r"(?:gloo|nccl|c10d|ProcessGroup).*(?:peer|remote|time(?:d )?out|abort)|\bDist(?:Store|Network)?Error\b",
        ),
        (Cause.KILLED, r"SIG(?:KILL|TERM|INT|HUP)|\bsignal (?:1|2|9|15)\b|(?:code|status)[ :=]+(?:-9|-15|137|143)\b"),
    )
)
"""Patterns of messages that name a cause, within one line, the more specific first."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Likely cause and advice, one line each."""

    cause: Cause
    advice: str


def diagnose(facts: Facts) -> Diagnosis:
    """Derive the likely cause of a process's failure from facts about it."""
    cause = _cause(facts)
    advice = ADVICE[cause]
    if cause is Cause.SHARED_MEMORY and facts.shared_memory is not None:
        free, total = (count / 2**30 for count in facts.shared_memory)
        advice = f"{free:.2f} of {total:.2f} GiB of /dev/shm are free now: {advice}"
    return Diagnosis(cause=cause, advice=advice)


def _cause(facts: Facts) -> Cause:
    named = named_cause(facts.exit_text)
    lost_child = facts.alive and facts.children_alive is False
    if named is Cause.MEMORY_MONITOR:
        return named
    if (facts.oom_kills_since_start or 0) > 0 and (not facts.alive or lost_child or named is Cause.ENGINE):
        return Cause.HOST_MEMORY
    if named is not None:
        return named
    if lost_child:
        return Cause.ENGINE
    if not facts.alive and (not facts.exit_text or SILENCE.search(facts.exit_text)):
        return Cause.SILENT
    if not facts.alive or facts.exit_text:  # an error of the process itself, whose text explains it
        return Cause.UNKNOWN
    return _cause_of_stall(facts)


def named_cause(text: str) -> Cause | None:
    """Cause that a message names; None if it names none."""
    text = GUESSES.sub("", text)
    return next((cause for cause, pattern in EXPLICIT if pattern.search(text)), None)


def _cause_of_stall(facts: Facts) -> Cause:
    """Cause of a process that runs, does not answer, and left no message."""
    if facts.is_stopped:
        return Cause.STOPPED
    if facts.process_state == "D":
        return Cause.DISK
    age = facts.heartbeat_age_seconds
    stale = age is not None and age > FRESH_SECONDS
    if stale and _is_short_of_memory(facts):
        return Cause.HOST_MEMORY
    if stale:
        return Cause.STUCK
    return Cause.UNKNOWN if age is None else Cause.BUSY


def _is_short_of_memory(facts: Facts) -> bool:
    available, total = facts.host_available_bytes, facts.host_total_bytes
    return available is not None and total is not None and available < SHORT_OF_MEMORY * total
