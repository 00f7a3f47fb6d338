"""What the end of a process's log says of its end: what Python and the libraries wrote there, and nothing else.

A log also holds what users' functions print, and libraries' reports of what they do: both may name any failure.
"""

from __future__ import annotations

import re

PREFIX = re.compile(r"^(?:\(\w+ pid=\d+\) |\[rank\d+\]: ?)+")
"""What vLLM and PyTorch put before each line of a process."""
TRACEBACK = re.compile(r"^(?:\+ )?(?:Exception Group )?Traceback \(most recent call last\):")
CHAINED = re.compile(
    r"^(?:The above exception was the direct cause of the following|During handling of the above exception, another)"
)
FATAL = re.compile(r"^(?:Fatal Python error: |\*\*\* SIG\w+ received at )")
"""Last words of the interpreter, and of Ray's code in C++: the stacks follow, to the end."""
LIBRARY = re.compile(
    r"^(?:"
    r"(?:ERROR|CRITICAL) \d\d-\d\d [\d:.]+ |"  # vLLM
    r"\[[EF]\d{4} [\d:.]+ |"  # PyTorch in C++
    r"\[\d{4}-\d\d-\d\d [\d:,]+ [EFC] |"  # Ray in C++
    r"\[\d{4}-\d\d-\d\d [\d:,]+\] \[(?:ERROR|CRITICAL)\] |"  # DeepSpeed
    r"\S+:\d+:\d+ \[\d+\] (?:\S+ )*NCCL WARN |"
    r"terminate called |  what\(\): |(?:free|malloc|realloc|munmap_chunk|corrupted|double free)\b.*\(|"  # C and C++
    r"CUDA kernel errors might|For debugging consider|Compile with `|Device-side assertions|Search for `cuda|"
    r"Last error:|nccl\w+: |Exception raised from |frame #\d+: "  # more lines of a message of PyTorch
    r")"
)
"""How lines begin that report a failure."""


def last_words(tail: str) -> str:
    """The lines that report why the process ended: of libraries, of the interpreter, and of a traceback at the end.

    A traceback after which the process printed more was not its end: its code had caught the exception.
    """
    lines = [PREFIX.sub("", line) for line in tail.splitlines()]
    kept, traceback, in_frames = list[str](), list[str](), False
    for number, line in enumerate(lines):
        if FATAL.match(line):
            return "\n".join([*kept, *traceback, *lines[number:]])
        if TRACEBACK.match(line):
            is_chained = any(CHAINED.match(before) for before in lines[max(0, number - 2) : number])
            traceback, in_frames = [*traceback, line] if is_chained else [line], True
        elif in_frames:
            traceback.append(line)
            in_frames = not line or line[0] in " \t"  # until the line with the exception
        elif LIBRARY.match(line):
            (traceback or kept).append(line)
        elif line.strip() and not CHAINED.match(line):
            traceback = []
    return "\n".join([*kept, *traceback])
