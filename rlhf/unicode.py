"""Text that UTF-8 can encode, as files, terminals and Ray need it.

Python's strings may hold halves of surrogate pairs: ``json.loads`` gives them for ``"\\ud83d"``, the system for names
of files in another encoding, and users' code for anything.
"""

from __future__ import annotations

import io
import sys


def encodable(text: str) -> str:
    """The text with the escape, such as ``\\ud83d``, in place of each half of a surrogate pair.

    Within a JSON string that is the same character again.
    """
    return str.encode(text, errors="backslashreplace").decode()  # a subclass may have an encode of its own


def escape_in_output() -> None:
    """Have this process's output show escapes where its encoding lacks a character: to print must not end a run."""
    for stream in (sys.stdout, sys.stderr):
        stream = getattr(stream, "stream", stream)  # within Ray's wrapper
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
