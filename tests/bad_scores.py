"""Fifty answers to the question of what a response is worth that are no answer: of services, and of functions."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.rlhf.service import Answer

SECONDS = 0.4
"""What a request may take in these tests."""

ANSWERS: dict[str, tuple[Answer, str]] = {
    "too few scores": ({"scores": [1.0]}, "returned 1 scores for 2 responses"),
    "too many scores": ({"scores": [1.0] * 3}, "returned 3 scores for 2 responses"),
    "without scores": ({"scores": []}, "returned 0 scores for 2 responses"),
    "one number": ({"scores": 1.0}, "returned float, not a list"),
    "null": ({"scores": None}, "returned NoneType, not a list"),
    "text": ({"scores": "1, 2"}, "returned str, not a list"),
    "an object": ({"scores": {"0": 1.0, "1": 2.0}}, "returned dict, not a list"),
    "numbers as text": ({"scores": ["1.0", "2.0"]}, "returned '1.0' (str) for sample 0"),
    "null for one": ({"scores": [1.0, None]}, "returned None (NoneType) for sample 1"),
    "booleans": ({"scores": [True, False]}, "returned True (bool) for sample 0"),
    "nested lists": ({"scores": [[1.0], [2.0]]}, "returned [1.0] (list) for sample 0"),
    "objects": ({"scores": [{"score": 1.0}] * 2}, "(dict) for sample 0"),
    "half of a character": (b'{"scores": ["\\ud800", 1.0]}', "(str) for sample 0"),
    "NaN": (b'{"scores": [1.0, NaN]}', "returned nan for sample 1"),
    "Infinity": (b'{"scores": [Infinity, 1.0]}', "returned inf for sample 0"),
    "1e999": (b'{"scores": [1e999, 1.0]}', "returned inf for sample 0"),
    "beyond single precision": (b'{"scores": [1.0, -1e39]}', "returned -1e+39 for sample 1"),
    "thousands of digits": (b'{"scores": [' + b"9" * 5000 + b", 1.0]}", "not JSON"),
    "another key": ({"rewards": [1.0, 2.0]}, "without scores"),
    "a bare list": (b"[1.0, 2.0]", "without scores"),
    "an empty body": (b"", "not JSON: ''"),
    "no content": ((204, {"Content-Length": None}), "not JSON: ''"),
    "a page": (b"<html><body>Welcome</body></html>", "not JSON: '<html>"),
    "half of JSON": (b'{"scores": [1.0, 2', "not JSON"),
    "bytes": (bytes(range(256)), "not JSON"),
    "brackets a hundred thousand deep": (b"[" * 60_000, "not JSON"),
    "ten megabytes": (b" " * 10_000_000 + b'{"scores": [1.0, 2.0]}', "more than 67,584 bytes"),
    "not found": (404, "HTTP 404"),
    "not allowed": (403, "HTTP 403"),
    "elsewhere": ((302, {"Location": "file:///etc/passwd"}), "redirects are not followed"),
    "gzip that is none": ((200, {"Content-Encoding": "gzip"}, b'{"scores": [1.0, 2.0]}'), "cannot be decompressed"),
    "a gzip bomb": ((200, {"Content-Encoding": "gzip"}, gzip.compress(b" " * 50_000_000)), "more than 67,584 bytes"),
    "half of a gzip stream": (
        (200, {"Content-Encoding": "gzip"}, gzip.compress(b'{"scores": [1.0, 2.0]}')[:15]),
        "not JSON",
    ),
}
"""Answers that break the contract for any ``on_failure`` → expected text of the error."""

FAILURES: dict[str, Answer] = {
    "an error of the service": 500,
    "a service that is starting": 503,
    "too many requests": (429, {"Retry-After": "9" * 400}),
    "a body that is cut off": (200, {"Content-Length": "99", "Connection": "close"}, b'{"scores": ['),
    "chunks that are cut off": (
        200,
        {"Content-Length": None, "Transfer-Encoding": "chunked", "Connection": "close"},
        b'ff\r\n{"scores": [1.0',
    ),
    "chunks of no length": (
        200,
        {"Content-Length": None, "Transfer-Encoding": "chunked", "Connection": "close"},
        b'xyz\r\n{"scores": [1.0, 2.0]}\r\n0\r\n\r\n',
    ),
    "an answer that comes late": 3.0,
}
"""What may pass: the service is asked again, and then it could not be asked."""

RAW: dict[str, bytes | None] = {
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nothing before it hangs up": b"",
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"X-More: yes\r\n" * 20_000,
    "silence": None,
}
"""What a socket may send that is no HTTP; None keeps the line open. Passing, too: a proxy or a start may do that."""

RIGHT: dict[str, Answer] = {
    "another type of content": (200, {"Content-Type": "text/html"}, b'{"scores": [1, 2.5]}'),
    "a byte order mark": b'\xef\xbb\xbf{"scores": [1, 2.5]}',
    "more than was asked for": {"scores": [1, 2.5], "model": "judge", "took": None},
    "packed though not asked to": (200, {"Content-Encoding": "gzip"}, gzip.compress(b'{"scores": [1, 2.5]}')),
    "chunks": (
        200,
        {"Content-Length": None, "Transfer-Encoding": "chunked"},
        b'9\r\n{"scores"\r\nb\r\n: [1, 2.5]}\r\n0\r\n\r\n',
    ),
}
"""Odd answers that hold what was asked for: 1 and 2.5."""

FUNCTIONS: dict[str, tuple[str, str]] = {
    "nothing": ("return None", "returned NoneType, not a list"),
    "too few": ("return [1.0]", "returned 1 scores for 2 responses"),
    "a number for all": ("return 1.0", "returned float, not a list"),
    "a generator": ("return (1.0 for _ in responses)", "returned generator, not a list"),
    "a dictionary": ("return {'a': 1.0, 'b': 2.0}", "returned dict, not a list"),
    "booleans": ("return [True, False]", "returned True (bool) for sample 0"),
    "NumPy booleans": ("import numpy; return numpy.array([True, False])", "returned True (bool) for sample 0"),
    "text": ("return ['1.0', '2.0']", "returned '1.0' (str) for sample 0"),
    "a table": ("import numpy; return numpy.zeros((2, 1))", "returned [0.0] (list) for sample 0"),
    "NaN": ("return [1.0, float('nan')]", "returned nan for sample 1"),
    "thousands of digits": ("return [10 ** 5000, 1.0]", "returned a value that cannot be shown for sample 0"),
    "complex numbers": ("return [1j, 1.0]", "returned 1j (complex) for sample 0"),
    "a tensor that holds nothing": (
        "import torch; return torch.zeros(2, device='meta')",
        "returned Tensor, whose tolist() failed",
    ),
    "an exit": ("import sys; sys.exit(0)", "failed on sample 0"),
    "recursion without end": ("return score(prompts, responses)", "failed on sample 0"),
    "an error of a megabyte": ("raise ValueError('x' * 1_000_000)", "failed on sample 0"),
    "an interrupt": ("raise KeyboardInterrupt", "failed on sample 0"),
    "the end of a generator": ("raise GeneratorExit", "failed on sample 0"),
    "an exit with a reason": ("raise SystemExit('done')", "SystemExit: done"),
    "an exception that is no Exception": ("raise type('Mine', (BaseException,), {})('no')", "Mine: no"),
    "an interrupt at the second sample": (
        "if 'p1' in prompts: raise KeyboardInterrupt\n    return [1.0] * len(prompts)",
        "failed on sample 1, prompt 'p1'",
    ),
    "a list that cannot be read": (
        "return type('Odd', (list,), {'__iter__': lambda self: __import__('sys').exit()})([1.0, 2.0])",
        "returned Odd, whose iteration failed",
    ),
    "a list without end": (
        "import itertools; return type('Odd', (list,), {'__iter__': lambda self: itertools.repeat(1.0)})([1.0, 2.0])",
        "returned 3 scores for 2 responses",
    ),
    "a list that interrupts when it is asked": (
        "def ask(self, name): raise KeyboardInterrupt\n    return type('Odd', (), {'__getattr__': ask})()",
        "returned Odd, whose tolist() failed",
    ),
    "floats without a value": (
        "return [type('Odd', (float,), {'__float__': lambda self: __import__('sys').exit()})(1.0)] * 2",
        "returned 1.0 (Odd) for sample 0, prompt 'p0', which is no number",
    ),
    "NumPy numbers without a value": (
        "import numpy; return [1.0, type('Odd', (numpy.float64,), {'__float__': lambda self: 1 / 0})(1.0)]",
        "(Odd) for sample 1, prompt 'p1', which is no number",
    ),
    "floats that hide their size": (
        "return [type('Odd', (float,), {'__abs__': lambda self: 0.0})('inf'), 1.0]",
        "returned inf for sample 0",
    ),
    "objects that almost are numbers": (
        "return [type('Odd', (), {'__float__': lambda self: 1.0})()] * 2",
        "(Odd) for sample 0",
    ),
    "texts that cannot be shown": (
        "return [type('Odd', (str,), {'__repr__': lambda self: __import__('sys').exit()})('1')] * 2",
        "returned a value that cannot be shown (Odd) for sample 0",
    ),
    "fractions beyond any float": (
        "import fractions; return [fractions.Fraction(10 ** 400), 1.0]",
        "training cannot use a score that is not finite",
    ),
    "an error without a text": (
        "raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})",
        "(no message)",
    ),
}
"""Body of a function → what the error must say."""

MODULES: dict[str, tuple[str, str]] = {
    "an exit on import": ("import sys\nsys.exit(0)\n", "SystemExit: 0"),
    "an interrupt on import": ("raise KeyboardInterrupt\n", "KeyboardInterrupt"),
    "an exception on import that is no Exception": ("raise type('Mine', (BaseException,), {})('no')\n", "Mine: no"),
    "a syntax error": ("def score(:\n", "SyntaxError"),
    "null bytes": ("score = 1\0\n", "cannot be imported"),
    "no such function": ("def scores(prompts, responses): return []\n", "has no function 'score'"),
    "not a function": ("score = 3\n", "has no function 'score'"),
}
"""A scorer's file → what the error must say."""


@contextmanager
def speak(words: bytes | None) -> Iterator[str]:
    """A port that sends ``words`` to every connection and closes it, or keeps it open; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_tell, args=(listener, words), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/score"


def _tell(listener: socket.socket, words: bytes | None) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # the test is over
            return
        with connection:
            connection.recv(65536)
            try:
                time.sleep(4 * SECONDS) if words is None else connection.sendall(words)
            except OSError:  # who asked has hung up
                continue
