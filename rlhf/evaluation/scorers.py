"""Python functions as judges: found by name, checked on every call, and named when they are at fault.

A scorer takes two lists of strings, prompts and responses, and returns a list of finite numbers, one for each response.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from rlhf.errors import UserError

ScoreFunction = Callable[[list[str], list[str]], Sequence[float]]
CONTRACT = "a scorer takes a list of prompts and a list of responses and returns a list of floats, one a response"


class Scorer:
    """A user's function with its answers checked. Made by ``load_scorer``."""

    def __init__(self, spec: str, function: ScoreFunction, folder: Path) -> None:
        """Args: spec names the function in messages; folder holds its file."""
        self.spec, self._function, self._folder = spec, function, folder

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Scores (n,) float64 of n responses.

        Raises:
            UserError: the function raised (with the sample at fault), or did not return n finite numbers.
        """
        try:
            result = self._run(prompts, responses)
        except Exception as error:
            raise self._blame(prompts, responses, error) from error
        return self._check(result, prompts)

    def _run(self, prompts: Sequence[str], responses: Sequence[str]) -> Any:
        with _importable(self._folder):  # functions may import their siblings as late as here
            return self._function(list(prompts), list(responses))

    def _blame(self, prompts: Sequence[str], responses: Sequence[str], error: Exception) -> UserError:
        """Find the sample by asking for each alone; a fault that only the whole batch shows is reported as such."""
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            try:
                self._run([prompt], [response])
            except Exception as single:
                return self._error(f"failed on sample {i}, prompt {_excerpt(prompt)}", _describe(single, self._folder))
        whole = f"failed on a batch of {len(prompts)}, though on no sample of it alone"
        return self._error(whole, _describe(error, self._folder))

    def _check(self, result: Any, prompts: Sequence[str]) -> np.ndarray:
        values = result.tolist() if hasattr(result, "tolist") else result  # NumPy arrays and tensors
        if not isinstance(values, (list, tuple)):
            raise self._error(f"returned {type(result).__name__}, not a list", CONTRACT)
        if len(values) != len(prompts):
            raise self._error(f"returned {len(values)} scores for {len(prompts)} responses", CONTRACT)
        for i, value in enumerate(values):
            where = f"for sample {i}, prompt {_excerpt(prompts[i])}"
            if not isinstance(value, Real):
                raise self._error(f"returned {value!r:.40} ({type(value).__name__}) {where}", CONTRACT)
            if not math.isfinite(value):
                raise self._error(f"returned {value} {where}", "training cannot use a score that is not finite")
        return np.array(values, dtype=np.float64)

    def _error(self, what: str, why: str) -> UserError:
        return UserError(f"scorer {self.spec} {what}", why, "mend the function; nothing else is at fault")


def load_scorer(spec: str) -> Scorer:
    """Find a scorer by ``package.module:function`` or ``path/to/file.py:function``.

    Raises:
        UserError: there is no such module, file or function, it is not callable, or importing it failed.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name:
        fix = "write package.module:function or path/to/file.py:function"
        raise UserError(f"scorer {spec!r} names no function", "", fix)
    module = _import_file(Path(source), spec) if source.endswith(".py") else _import_module(source, spec)
    function = getattr(module, name, None)
    if not callable(function):
        names = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        close = difflib.get_close_matches(name, names, n=1) or sorted(names)
        fix = f"name one of its functions: {', '.join(close) or 'it has none'}"
        raise UserError(f"scorer {spec}: {source} has no function {name!r}", "", fix)
    return Scorer(spec, function, Path(module.__file__ or source).resolve().parent)


def _import_file(path: Path, spec: str) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        fix = "give a path that is right from the current folder"
        raise UserError(f"scorer {spec}: there is no file {path}", "", fix)
    # The prefix keeps a file called, say, random.py from standing in for the standard module of that name.
    name = f"rlhf_scorer_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None  # every .py file has a loader
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickle look a module up by its name
    with _importable(path.parent), _import_errors(spec, path.parent):
        module_spec.loader.exec_module(module)
    return module


def _import_module(name: str, spec: str) -> ModuleType:
    with _importable(Path.cwd()), _import_errors(spec, Path.cwd()):
        return importlib.import_module(name)


@contextmanager
def _import_errors(spec: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        why = _describe(error, folder)
        raise UserError(f"scorer {spec} cannot be imported", why, "check its name and its imports") from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let ``import`` find the modules in ``folder`` while the block runs."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _describe(error: Exception, folder: Path) -> str:
    """Type, message, and the deepest line that was running of the code in ``folder``: the user's own, no library's."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(folder)]
    where = f", at {own[-1].filename}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {error}{where}"


def _excerpt(prompt: str, width: int = 60) -> str:
    return repr(prompt if len(prompt) <= width else prompt[:width] + "…")
