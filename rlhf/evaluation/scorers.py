"""Scorers: user functions that score responses, imported by name and checked on every call.

A scorer takes two lists of strings, prompts and responses, and returns a list of finite numbers, one per response. If
it has a third parameter ``rows``, it also receives each prompt's data row. It may be an ``async def``.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from rlhf.errors import UserError
from rlhf.evaluation.helpers import hidden_helper, importing_from
from rlhf.evaluation.score_checks import check_scores, name_sample
from rlhf.evaluation.user_code import UserCodeFault, message_of, own_faults

ScoreFunction = Callable[..., Any]
Row = Mapping[str, object]
OF_PROMPTS, OF_RESPONSES = {"prompts", "questions"}, {"responses", "completions", "answers", "outputs"}
"""Names of parameters that say what they are for."""
SINGLE_RESULTS = {"float", "int", "bool", "str", "dict", "None"}
"""Annotations of functions that return something else than one score per response."""
CONTRACT = (
    "a scorer takes a list of prompts and a list of responses (and, if it has a parameter named rows, a list of data "
    "rows) and returns a list of floats, one per response"
)
NEEDS_MAIN_THREAD = re.compile(r"signal only works in main thread|usage of signal\.alarm\(\)")
"""In the messages of Python, and of math-verify, whose time limits are alarms."""
IN_A_THREAD = (
    "; a reward function does not run in the main thread, so that it can handle no signal: limit the time of a "
    "computation by a process of its own, as subprocess.run(..., timeout=5) does, and switch a library's own limit off "
    "(math-verify: parsing_timeout=None, timeout_seconds=None)"
)
LONGEST_MESSAGE = 1000
"""Characters of a function's error message that are shown."""


class Scorer:
    """A user's function whose results are checked. Created by ``load_scorer``."""

    def __init__(self, spec: str, function: ScoreFunction, folder: Path, root: Path) -> None:
        """Wrap a function, and find its parameter for data rows.

        Args:
            spec: name of the function in messages.
            folder: folder of its file.
            root: folder from which it imports: that of a file, or the current one for a module.
        """
        self.spec, self._function, self._folder, self._root = spec, function, folder, root
        self._rows = _rows_parameter(function)
        self._loop: asyncio.Runner | None = None

    @property
    def needs_rows(self) -> bool:
        """Whether the function cannot be called without data rows."""
        return self._rows is not None and self._rows.default is inspect.Parameter.empty

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Row] | None = None
    ) -> np.ndarray:
        """(n,) float64 scores of n responses.

        Args:
            rows: the data row of each prompt, for a function that takes them; None if there are none.

        Raises:
            UserError: the function raised an exception (the message names the sample), did not return n finite numbers,
                or needs rows while ``rows`` is None.
        """
        if rows is None and self.needs_rows:
            why = "it has a required parameter named rows, and the prompts scored here have no data rows"
            fix = "give the parameter a default, rows=None, or use another function here"
            raise UserError(f"scorer {self.spec} needs data rows", why, fix)
        rows = rows if self._rows is not None else None
        try:
            result = self._run(prompts, responses, rows)
        except UserCodeFault as fault:
            raise self._locate(prompts, responses, rows, fault.error) from fault.error
        return check_scores(result, prompts, rows, CONTRACT, self._error)

    def _run(self, prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Row] | None) -> Any:
        more = {} if rows is None else {"rows": list(rows)}
        with importing_from(self._root), own_faults():  # functions may import modules beside them when called
            result = self._function(list(prompts), list(responses), **more)
            return self._await(result) if inspect.isawaitable(result) else result

    def _await(self, result: Awaitable[Any]) -> Any:
        """Result of an async function; all calls use one event loop, so that the function can keep connections open."""

        async def finish() -> Any:
            return await result

        self._loop = self._loop or asyncio.Runner()
        return self._loop.run(finish())

    def _locate(
        self, prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Row] | None, error: BaseException
    ) -> UserError:
        """Locate the failing sample by scoring each one alone; if none fails, report the failure of the batch."""
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            try:
                self._run([prompt], [response], None if rows is None else rows[i : i + 1])
            except UserCodeFault as single:
                return self._error(f"failed on {name_sample(i, prompts, rows)}", _describe(single.error, self._folder))
        whole = f"failed on a batch of {len(prompts)}, but on no single sample of it"
        return self._error(whole, _describe(error, self._folder))

    def _error(self, what: str, why: str) -> UserError:
        return UserError(f"scorer {self.spec} {what}", why, "correct the function")


def _rows_parameter(function: ScoreFunction) -> inspect.Parameter | None:
    try:
        return inspect.signature(function).parameters.get("rows")
    except (ValueError, TypeError):  # functions written in C may have no signature
        return None


def load_scorer(spec: str) -> Scorer:
    """Load a scorer from ``package.module:function`` or ``path/to/file.py:function``.

    Raises:
        UserError: the module, file or function does not exist, is not callable, or takes other parameters, or its
            import failed.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name:
        fix = "write package.module:function or path/to/file.py:function"
        raise UserError(f"scorer {spec!r} names no function", "", fix)
    root = Path(source).expanduser().resolve().parent if source.endswith(".py") else Path.cwd().resolve()
    module = _import_file(Path(source), spec) if source.endswith(".py") else _import_module(source, spec, root)
    function = getattr(module, name, None)
    if not callable(function):
        names = [known for known, value in vars(module).items() if _is_own(known, value, module)]
        close = difflib.get_close_matches(name, names, n=1)
        known = f"its functions are {', '.join(sorted(names))}" if names else "it has no function"
        fix = f"did you mean {close[0]}? {known}" if close else known
        raise UserError(f"scorer {spec}: {source} has no function {name!r}", "", fix)
    _check_signature(function, spec)
    return Scorer(spec, function, Path(module.__file__ or source).resolve().parent, root)


def _is_own(name: str, value: object, module: ModuleType) -> bool:
    """Whether a module's public name is a function of its own, and none that it imports."""
    is_function = callable(value) and not inspect.isclass(value) and not name.startswith("_")
    return is_function and getattr(value, "__module__", None) == module.__name__


def _check_signature(function: ScoreFunction, spec: str) -> None:
    """Refuse a function that cannot be called with two lists and perhaps ``rows``, before any model is loaded."""
    more: dict[str, object] = {"rows": []} if _rows_parameter(function) else {}
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # functions written in C may have no signature
        return
    try:
        signature.bind([], [], **more)
    except TypeError as error:
        fix = "give it the parameters (prompts, responses), or (prompts, responses, rows)"
        raise UserError(f"scorer {spec} has the parameters {signature}: {error}", CONTRACT, fix) from error
    first, second = list(signature.parameters)[:2] if len(signature.parameters) > 1 else ("", "")
    if first in OF_RESPONSES or second in OF_PROMPTS:
        fix = "exchange its first two parameters: (prompts, responses)"
        raise UserError(f"scorer {spec} has the parameters {signature}, and prompts are passed first", CONTRACT, fix)
    _check_kind(function, signature, spec)


def _check_kind(function: ScoreFunction, signature: inspect.Signature, spec: str) -> None:
    """Refuse what can be called with two lists but returns no list: its first call is long after the start."""
    fix = "write a function that takes and returns lists"
    if inspect.isclass(function):
        fix = f"name a function, or an object with a method __call__, for example an instance of {function.__name__}"
        raise UserError(f"scorer {spec} is a class: a call creates an object, not scores", CONTRACT, fix)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise UserError(f"scorer {spec} is a generator: it yields, and does not return a list", CONTRACT, fix)
    texts = list(signature.parameters.values())[:2]
    if one := next((text.name for text in texts if _type_name(text.annotation) == "str"), None):
        raise UserError(f"scorer {spec} has the parameters {signature}: {one} is one text, not a list", CONTRACT, fix)
    if (result := _type_name(signature.return_annotation)) in SINGLE_RESULTS:
        raise UserError(f"scorer {spec} returns {result} by its annotation, not a list", CONTRACT, fix)


def _type_name(annotation: object) -> str:
    """Name of an annotated type, which may be written as text."""
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")


def _import_file(path: Path, spec: str) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        fix = "give a path relative to the current folder"
        raise UserError(f"scorer {spec}: there is no file {path}", "", fix)
    # With the prefix a file such as random.py does not replace the standard module of that name; with the digest, files
    # of one name in two folders do not replace each other.
    name = f"rlhf_scorer_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None  # every .py file has a loader
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickle look up modules by name
    with importing_from(path.parent):
        if hidden := hidden_helper(path):
            what = f"scorer {spec} imports {hidden}, which lies beside it, and would get another module {hidden}"
            raise UserError(what, "this program has already loaded one of that name", f"rename {path.parent / hidden}")
        with _import_errors(spec, path.parent):
            module_spec.loader.exec_module(module)
    return module


def _import_module(name: str, spec: str, root: Path) -> ModuleType:
    with importing_from(root), _import_errors(spec, root):
        return importlib.import_module(name)


@contextmanager
def _import_errors(spec: str, folder: Path) -> Iterator[None]:
    try:
        with own_faults():
            yield
    except UserCodeFault as fault:
        why = _describe(fault.error, folder)
        raise UserError(f"scorer {spec} cannot be imported", why, "check its name and its imports") from fault.error


def _describe(error: BaseException, folder: Path) -> str:
    """Type and message of an error, and the innermost line of its traceback in ``folder``, the user's own code."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(folder)]
    where = f", at {own[-1].filename}:{own[-1].lineno}" if own else ""
    text = message_of(error)
    hint = IN_A_THREAD if NEEDS_MAIN_THREAD.search(text) else ""
    text = text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + "…"
    return f"{type(error).__name__}: {text}{where}{hint}"
