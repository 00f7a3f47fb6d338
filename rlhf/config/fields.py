"""Building blocks of the schema: the section decorator, numbers with limits, and errors of rules within a section.

The text in a number's annotation describes its limit in messages and in ``docs/configuration.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, field, fields
from difflib import get_close_matches
from typing import Annotated, TypeVar, cast, dataclass_transform
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, StrictStr
from pydantic.dataclasses import dataclass

from rlhf.config.source import NUMBER
from rlhf.errors import UserError
from rlhf.metrics import METRICS, unknown_metrics
from rlhf.secrets import without_secrets

T = TypeVar("T")
HERE = "{here}"
"""Placeholder, in the text of a rule's error, for the dotted key of the error."""
MOST_WHOLE = 2**32 - 1
"""Largest whole number: seeds have 32 bits, and counts are smaller."""
MOST = 3.4e38
"""Largest absolute value of any other number: tensors are in single precision."""
MOST_PROCESSES = 1_000_000
"""Largest number of processes of a role: more than any cluster has."""
MOST_WEIGHT = 1e6
"""Largest factor of a part of the loss or the score: beyond it, single precision loses the other parts."""
PART_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")
VARIABLE_NAME = re.compile(r"(?=\w*_|\w*(?:KEY|TOKEN)$)[A-Z_][A-Z0-9_]{0,59}")
"""Capitals with an underscore, or KEY or TOKEN at the end: what is given in its place may be a key of capitals."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
def section(cls: type[T]) -> type[T]:
    """Make a class a section of the recipe: a frozen, keyword-only dataclass that validates its values.

    Every construction validates, ``dataclasses.replace`` included, and raises pydantic's ``ValidationError``.
    ``load_recipe`` translates it into a ``UserError``. Errors do not show their input, which may hold a password.
    """
    config = ConfigDict(extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)
    return cast(type[T], dataclass(frozen=True, kw_only=True, config=config)(cls))


class RuleError(ValueError):
    """Values of one section that cannot work together. Each problem's text begins with the key at fault."""

    def __init__(self, problems: Iterable[UserError]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)).replace(HERE, "this"))


_IS_LENIENT = ContextVar("_IS_LENIENT", default=False)


@contextmanager
def rules_off() -> Iterator[None]:
    """Context in which values of one section may contradict each other: their types and limits are checked alone."""
    token = _IS_LENIENT.set(True)
    try:
        yield
    finally:
        _IS_LENIENT.reset(token)


def refuse(problems: Iterable[UserError]) -> None:
    """Raise the problems, if there are any, as one ``RuleError``."""
    if (found := list(problems)) and not _IS_LENIENT.get():
        raise RuleError(found)


def defaults_of(section: type, prefix: str, names: Iterable[str]) -> str:
    """Overrides that restore defaults: what a command line can say of keys that a file could leave out."""
    default = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(section)}
    return " ".join(f"{prefix}.{name}={_as_yaml(default[name])}" for name in names)


def _as_yaml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: object) -> object:
    """Convert a number in quotes, such as "1e-5"."""
    return float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value


def _exact_int(value: object) -> object:
    """Hide values that only equal an int (1.0, true) from ``Literal``, which compares."""
    return value if type(value) is int else None


def _sequence(value: object) -> object:
    """Hide collections without an order (YAML sets) from ``tuple``, which would accept them."""
    return value if isinstance(value, list | tuple) else None


def _off(value: object) -> object:
    """Convert false to "off": YAML 1.1 reads a bare off as false."""
    return "off" if value is False else value


def _part_name(name: str) -> str:
    if not PART_NAME.fullmatch(name):
        why = "the name is used in a metric and a log file"
        fix = "use up to 60 letters, digits, dashes and underscores"
        raise RuleError([UserError(f"{HERE} has a part named {name!r}", why, fix)])
    return name


def _variable_name(name: str) -> str:
    if not VARIABLE_NAME.fullmatch(name):
        why = "it is no word of capitals such as JUDGE_KEY or TOKEN; it is not shown, since it may be a key"
        fix = "put the key into an environment variable, and its name here, such as RLHF_JUDGE_KEY"
        raise RuleError([UserError(f"{HERE} is no name of an environment variable", why, fix)])
    return name


def _metric_name(name: str) -> str:
    if not unknown_metrics([{name: 0.0}]):
        return name
    close = get_close_matches(name, METRICS, n=1)
    fix = f"{HERE}={close[0]}" if close else "docs/metrics.md lists the metrics of a step"
    raise RuleError([UserError(f"{HERE} = {name!r} is no metric", "no step would have it", fix)])


def _is_http(url: str) -> bool:
    import httpx

    try:
        parts = urlsplit(url)
        port = parts.port  # raises if it is not a number up to 65535
        httpx.URL(url)  # the client that sends the requests has further rules
    except (ValueError, httpx.InvalidURL):
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and url.isascii() and " " not in url


def _service(example: str) -> Callable[[str], str]:
    """A check of a service's address; the example is one of the services that the key is for."""

    def check(url: str) -> str:
        if not _is_http(url):
            what = f"{HERE} = {without_secrets(url)!r} is no address of a service"
            raise RuleError([UserError(what, "requests are sent by HTTP", f"{HERE}={example}, or https://...")])
        return url

    return check


def _collector(url: str) -> str:
    if not _is_http(url) or urlsplit(url).query:
        what = f"{HERE} = {without_secrets(url)!r} is no address of a collector"
        why = "spans are sent by OTLP over HTTP, to /v1/traces below that address"
        raise RuleError([UserError(what, why, f"{HERE}=http://127.0.0.1:4318, or https://...")])
    return url


ExactInt = BeforeValidator(_exact_int)
"""Validator before a ``Literal`` of ints."""
OffSwitch = BeforeValidator(_off)
"""Validator before a ``Literal`` with the option ``off``."""
Texts = Annotated[tuple[StrictStr, ...], BeforeValidator(_sequence)]
PartName = Annotated[StrictStr, AfterValidator(_part_name)]
VariableName = Annotated[StrictStr, AfterValidator(_variable_name)]
MetricName = Annotated[StrictStr, AfterValidator(_metric_name)]
ServiceUrl = Annotated[StrictStr, AfterValidator(_service("http://127.0.0.1:8000/v1"))]
"""Address of an OpenAI-compatible service, up to ``/v1``."""
ServerUrl = Annotated[StrictStr, AfterValidator(_service("http://127.0.0.1:8000"))]
"""Address of an OpenAI-compatible server, without ``/v1``."""
ScorerUrl = Annotated[StrictStr, AfterValidator(_service("http://127.0.0.1:8000/score"))]
"""Address of a service that scores responses."""
CollectorUrl = Annotated[StrictStr, AfterValidator(_collector)]

Whole = Annotated[int, Strict(), Field(le=MOST_WHOLE)]
Count = Annotated[Whole, Field(ge=1), "at least 1"]
Several = Annotated[Whole, Field(ge=2, le=1000), "from 2 to 1000"]
CountOrZero = Annotated[Whole, Field(ge=0), "at least 0"]
ZeroOrOne = Annotated[Whole, Field(ge=0, le=1), "0 or 1"]
Seed = Annotated[Whole, Field(ge=0), f"from 0 to {MOST_WHOLE}"]
ByteVocabulary = Annotated[Whole, Field(ge=258, le=2**24), f"from 258 to {2**24}"]
"""256 bytes, the pad token and the end token."""
Epochs = Annotated[Whole, Field(ge=1, le=100_000), "from 1 to 100000"]
Batch = Annotated[Whole, Field(ge=1, le=2**24), f"from 1 to {2**24}"]
"""Samples that are in memory at a time."""
Factor = Annotated[Whole, Field(ge=1, le=1000), "from 1 to 1000"]
Processes = Annotated[Whole, Field(ge=1, le=MOST_PROCESSES), f"from 1 to {MOST_PROCESSES}"]
Layers = Annotated[Whole, Field(ge=1, le=1000), "from 1 to 1000"]
Width = Annotated[Whole, Field(ge=1, le=2**20), f"from 1 to {2**20}"]
"""Width of a matrix: of hidden states, a feed-forward block, an adapter."""
Context = Annotated[Whole, Field(ge=1, le=2**24), f"from 1 to {2**24}"]
"""Positions of a model; tables of rotary embeddings have a row for each."""

Number = Annotated[
    float, Strict(), Field(ge=-MOST, le=MOST, allow_inf_nan=False), BeforeValidator(_number), "any number"
]
Positive = Annotated[Number, Field(gt=0), "above 0"]
Temperature = Annotated[Number, Field(ge=0.01, le=100), "from 0.01 to 100"]
"""vLLM raises lower temperatures to 0.01."""
NotNegative = Annotated[Number, Field(ge=0), "at least 0"]
NotPositive = Annotated[Number, Field(le=0), "at most 0"]
AtLeastOne = Annotated[Number, Field(ge=1), "at least 1"]
AboveOne = Annotated[Number, Field(gt=1), "above 1"]
Fraction = Annotated[Number, Field(ge=0, le=1), "from 0 to 1"]
OpenFraction = Annotated[Number, Field(gt=0, lt=1), "between 0 and 1, both excluded"]
BelowOne = Annotated[Number, Field(ge=0, lt=1), "from 0 to below 1"]
BelowHalf = Annotated[Number, Field(ge=0, lt=0.5), "from 0 to below 0.5"]
Share = Annotated[Number, Field(gt=0, le=1), "above 0, at most 1"]
Seconds = Annotated[Number, Field(gt=0, le=1e9), "above 0, at most 1e9"]
"""The operating system does not support waits of 1e10 seconds."""
SecondsOrZero = Annotated[Number, Field(ge=0, le=1e9), "from 0 to 1e9"]
LearningRate = Annotated[Number, Field(ge=1e-12, le=10), "from 1e-12 to 10"]
"""Adam moves a weight by about this much in an update: less than 1e-12 is lost in rounding, more than 10 is noise."""
Epsilon = Annotated[Number, Field(gt=0, le=1), "above 0, at most 1"]
Coefficient = Annotated[Number, Field(ge=0, le=MOST_WEIGHT), "from 0 to 1e6"]
"""Factor of a part of the loss or the score."""
PositiveCoefficient = Annotated[Number, Field(gt=0, le=MOST_WEIGHT), "above 0, at most 1e6"]
Weight = Annotated[Number, Field(ge=-MOST_WEIGHT, le=MOST_WEIGHT), "from -1e6 to 1e6"]
