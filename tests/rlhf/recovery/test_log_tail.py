"""Of a log's end only what Python and libraries wrote names a cause."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rlhf.recovery.diagnosis import Cause, named_cause
from rlhf.recovery.log_tail import last_words

CAUGHT = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\nMemoryError\n'
START = (
    "(MainProcess pid=2) INFO 11-30 11:03:44 [arg_utils.py:2326] Using ray runtime env: {'GLOO_SOCKET_IFNAME': '***'}\n"
    "(MainProcess pid=2) INFO 11-30 11:03:46 [worker_base.py:317] Injected extended collective_rpc calls "
    "['abort_receiving']\n[W1130 11:03:46.159870014 utils.cpp:68] Warning: NCCL operations abort\n"
)
CUDA = (
    "torch.AcceleratorError: CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be "
    "asynchronously reported at some other API call, so the stacktrace below might be incorrect.\nFor debugging "
    "consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n\n"
)
HEAD = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    f()\n    ~^^\n'
CAUSED = "\nThe above exception was the direct cause of the following exception:\n\n"


@pytest.mark.parametrize(
    ("tail", "cause"),
    [
        ("MemoryError in sympy.parse\nCUDA out of memory\n", None),
        (CAUGHT + "score of call 7\n", None),
        (CAUGHT + "score of call 7\n" + HEAD + "ValueError: x\n", None),
        (START, None),
        ("result: terminate called std::bad_alloc\n", None),
        (CAUGHT, Cause.HOST_MEMORY),
        ("score of call 7\n" + HEAD + CUDA, Cause.GPU_ACCESS),
        (HEAD + "torch.OutOfMemoryError: CUDA out of memory\n" + CAUSED + HEAD + "Failed: x\n", Cause.GPU_MEMORY),
        ("(EngineCore_0 pid=4) " + CAUGHT.replace("\n", "\n(EngineCore_0 pid=4) "), Cause.HOST_MEMORY),
        ("(EngineCore_0 pid=4) ERROR 11-30 11:03:44 [core.py:1] CUDA error: out of memory\nmore\n", Cause.GPU_MEMORY),
        ("[rank0]:[E1130 11:03:46.15 ProcessGroupGloo.cpp:68] gloo: Connection closed by peer\nmore\n", Cause.PEER),
        ("terminate called after throwing 'gloo::IoException'\n  what():  gloo: closed by peer\n", Cause.PEER),
        ("terminate called after throwing an instance of 'std::bad_alloc'\n", Cause.HOST_MEMORY),
        ("node1:12:34 [0] misc/socket.cc:1 NCCL WARN NCCL: remote process exited\n", Cause.NCCL),
        ("free(): invalid pointer\n*** SIGABRT received at time=1700000000 on cpu 1 ***\n  @ 0x7f\n", Cause.CRASHED),
        ("call 7\nFatal Python error: Segmentation fault\n\nThread 0x7f (most recent call first):\n", Cause.CRASHED),
    ],
)
def test_prints_of_users_and_reports_of_libraries_name_no_cause(tail: str, cause: Cause | None) -> None:
    assert named_cause(last_words(tail)) is cause


def test_the_last_words_of_an_interpreter_are_found() -> None:
    for code, cause in (("raise MemoryError", Cause.HOST_MEMORY), ("import os; os.abort()", Cause.CRASHED)):
        ended = subprocess.run([sys.executable, "-X", "faulthandler", "-c", code], capture_output=True, text=True)
        assert named_cause(last_words("CUDA error\n" + ended.stderr)) is cause
