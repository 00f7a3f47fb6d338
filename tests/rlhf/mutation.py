"""A bug put into a module for a while, to see that a check fails by it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, ModuleType


@contextmanager
def mutated(module_name: str, old: str, new: str) -> Iterator[None]:
    """Run with ``old``, which occurs once in the module's source, replaced by ``new``; restored afterwards.

    The changed source is compiled, and every function and method of the module gets its new code. The functions stay
    the objects that they were, so whoever imported one of them runs the bug, and so do subclasses of the module's
    classes. What is not inside a function (constants, default arguments) keeps its value.
    """
    module = importlib.import_module(module_name)
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{source.count(old)} times in {module_name}: {old!r}"
    codes = dict(code_by_name(compile(source.replace(old, new), str(module.__file__), "exec", dont_inherit=True)))
    healthy = [(function, function.__code__) for function in functions_of(module)]
    try:
        for function, _ in healthy:
            function.__code__ = codes[function.__qualname__]
        yield
    finally:
        for function, code in healthy:
            function.__code__ = code


def code_by_name(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    """The code of every class and function below a piece of code, by qualified name."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner.co_qualname, inner
            yield from code_by_name(inner)


def functions_of(module: ModuleType) -> list[FunctionType]:
    """The functions, methods and properties that are written in the module; not those that dataclasses make."""
    classes = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    values = [value for owner in (module, *classes) for value in vars(owner).values()]
    getters = [value.fget if isinstance(value, property) else value for value in values]
    found = [inspect.unwrap(getter) for getter in getters if callable(getter)]
    return [f for f in found if isinstance(f, FunctionType) and f.__code__.co_filename == module.__file__]
