"""What a gate decides on: values by item of both arms, or counts, from the files that are given to it.

Shapes: I items, U units. A unit is a cluster of items, such as the samples of one prompt.
"""

from __future__ import annotations

import hashlib
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.errors import UserError
from rlhf.evaluation.agreement_with_people import require_can_gate
from rlhf.serving.measurement import Proportion
from rlhf.storage.canonical import canonical_digest
from rlhf.storage.jsonl import given_rows, parsed
from rlhf.types import Float64

FIX = "docs/production.md describes the files that a gate reads"
LARGEST = 1e100
"""Largest absolute value: sums of squares stay finite."""
MOST_COUNTED = 2**53
"""Largest count, which a float still holds."""


@dataclass(frozen=True, kw_only=True)
class ItemSeries:
    """A metric's values by item, NaN where one is missing, in the order in which they came in."""

    items: tuple[str, ...]
    clusters: tuple[str, ...]
    """Items of one cluster are not independent: they count as one unit."""
    candidate: Float64
    production: Float64
    """NaN throughout if production was not measured."""

    def units(self, values: Float64) -> Float64:
        """(U,) mean of each cluster, in the order of first appearance; items with NaN are left out."""
        is_known = ~np.isnan(values)
        names, first, cluster = np.unique(
            np.asarray(self.clusters, dtype=object)[is_known], return_index=True, return_inverse=True
        )
        if not len(names):
            return np.zeros(0)
        means = np.bincount(cluster, weights=values[is_known]) / np.bincount(cluster)
        return np.asarray(means[np.argsort(first)], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class CountSeries:
    """Successes of both arms' independent requests."""

    candidate: Proportion
    production: Proportion | None

    def with_more(self, more: CountSeries) -> CountSeries:
        """The counts of two periods, or of two gateways, together."""
        both = (self.production, more.production)
        return CountSeries(
            candidate=self.candidate.with_more(more.candidate),
            production=None if both[0] is None or both[1] is None else both[0].with_more(both[1]),
        )


Series = ItemSeries | CountSeries


@dataclass(frozen=True, kw_only=True)
class GateData:
    """All that the files hold."""

    series: Mapping[str, Series]
    """By metric."""
    files: Mapping[str, str]
    """Name of each file → SHA-256 of its content."""
    artefacts: frozenset[str] = frozenset()
    """Digests of the artefact that the files say they measured."""
    baselines: frozenset[str] = frozenset()
    judge_calls: int = 0


@dataclass(kw_only=True)
class _Reader:
    """Collects what the files hold, for the gate's KPIs."""

    metrics: frozenset[str]
    candidate: str
    production: str
    series: dict[str, Series] = field(default_factory=dict)
    rows: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    artefacts: set[str] = field(default_factory=set)
    baselines: set[str] = field(default_factory=set)
    judge_calls: int = 0

    def add(self, metric: str, found: Series, file: str) -> None:
        before = self.series.get(metric)
        if isinstance(before, CountSeries) and isinstance(found, CountSeries):
            self.series[metric] = before.with_more(found)
            return
        if before is not None:
            what = f"{metric} is in {self.origin[metric]} and in {file}"
            raise UserError(what, "a gate does not choose between two measurements", "leave one of the files out")
        self.series[metric], self.origin[metric] = found, file


def read_gate_data(files: Sequence[str], metrics: Iterable[str], candidate: str, production: str) -> GateData:
    """Read reports of ``rlhf evaluate --comparison``, JSON files of counts, and JSONL files of values by item.

    Args:
        metrics: metrics that the gate needs; others are not read.
        candidate, production: names of the arms in a report.

    Raises:
        UserError: a file cannot be used, or a metric of a report does not agree with people.
    """
    reader = _Reader(metrics=frozenset(metrics), candidate=candidate, production=production)
    digests: dict[str, str] = {}
    for name in files:
        path = Path(name).expanduser()
        raw = _read(path)
        digest = hashlib.sha256(raw).hexdigest()
        if digest in digests.values():
            raise UserError(f"{name} is given twice, or holds the same as another file", "its data would count twice")
        digests[str(name)] = digest
        if path.suffix == ".jsonl":
            _read_rows(reader, raw, str(name))
            continue
        content = parsed(raw)
        if content is None:
            why = "a name that ends with .jsonl is for one object a line, any other for one object"
            raise UserError(f"{name} is no JSON object", why, FIX)
        if "agreement" in content:
            _read_report(reader, content, str(name))
        elif "counts" in content:
            _read_counts(reader, content, str(name))
        else:
            why = "it is neither a report of `rlhf evaluate --comparison --out` nor a file of counts"
            raise UserError(f"{name} holds no results", why, FIX)
    for metric, rows in reader.rows.items():
        reader.add(metric, _series_of_rows(metric, rows), "a JSONL file")
    return GateData(
        series=reader.series,
        files=digests,
        artefacts=frozenset(reader.artefacts),
        baselines=frozenset(reader.baselines),
        judge_calls=reader.judge_calls,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} cannot be read: {why}", fix="name files of results") from error


def first_units_digest(values: Float64, count: int) -> str:
    """Digest of the first ``count`` units: whether data that grew still begin with what was seen before."""
    return canonical_digest([round(float(value), 12) for value in values[:count]])


def _read_report(reader: _Reader, report: Mapping[str, Any], file: str) -> None:
    """Values by item of an evaluation's metrics; each metric must agree with people on these answers."""
    values = report.get("values")
    if not isinstance(values, dict):
        fix = "run `rlhf evaluate --comparison` again with this version"
        raise UserError(f"{file} holds no values by item", "an earlier version wrote it", fix)
    usage = report.get("usage")
    try:
        items, clusters = tuple(map(str, values["items"])), tuple(map(str, values["clusters"]))
        reader.judge_calls += int(usage.get("calls", 0)) if isinstance(usage, dict) else 0
        if len(set(items)) < len(items):
            raise ValueError("an item is in it twice")
        for metric, by_arm in values["metrics"].items():
            if metric not in reader.metrics:
                continue
            for arm in (reader.candidate, reader.production):
                if arm not in by_arm:
                    fix = f"set candidate and production to two of {', '.join(by_arm)}"
                    raise UserError(f"{file} has no arm {arm!r}", fix=fix)
            require_can_gate(report, metric)
            candidate, production = (
                np.array([_number(value) for value in by_arm[arm]], dtype=np.float64)
                for arm in (reader.candidate, reader.production)
            )
            if not len(items) == len(clusters) == len(candidate) == len(production):
                raise ValueError("lists of different lengths")
            reader.add(
                metric,
                ItemSeries(items=items, clusters=clusters, candidate=candidate, production=production),
                file,
            )
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(f"{file} is no whole report", f"{type(error).__name__}: {error}", FIX) from error


def _read_counts(reader: _Reader, content: Mapping[str, Any], file: str) -> None:
    try:
        for metric, arms in content["counts"].items():
            if metric in reader.metrics:
                production = arms.get("production")
                found = CountSeries(
                    candidate=_proportion(arms["candidate"]),
                    production=None if production is None else _proportion(production),
                )
                reader.add(metric, found, file)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{file} holds no counts of successes and n", why, FIX) from error
    for key, digests in (("artefact", reader.artefacts), ("baseline", reader.baselines)):
        if content.get(key):
            digests.add(str(content[key]))


def _proportion(value: Mapping[str, Any]) -> Proportion:
    successes, n = value["successes"], value["n"]
    if type(successes) is not int or type(n) is not int or not 0 <= successes <= n <= MOST_COUNTED:
        raise ValueError(f"{reprlib.repr(successes)} successes of {reprlib.repr(n)}")
    return Proportion(successes=successes, n=n)


def _read_rows(reader: _Reader, content: bytes, file: str) -> None:
    for number, row in given_rows(content, file):
        place = f"{file}:{number}"
        metric, item, cluster = row.get("metric"), row.get("item"), row.get("cluster")
        if not isinstance(metric, str) or not _is_name(item):
            raise UserError(f"{place} has no metric or no item", "values are paired by item", FIX)
        if cluster is not None and not _is_name(cluster):
            raise UserError(f"{place}: cluster is neither a text nor a whole number", fix=FIX)
        if metric in reader.metrics:
            arms = {arm: _row_value(row.get(arm), place, arm) for arm in ("candidate", "production")}
            kept = {"item": str(item), "cluster": str(item if cluster is None else cluster), "place": place, **arms}
            reader.rows.setdefault(metric, []).append(kept)


def _is_name(value: object) -> bool:
    return isinstance(value, str) or type(value) is int


def _row_value(value: object, place: str, arm: str) -> float:
    try:
        return _number(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}: {arm} is {error}", fix="a number, true, false, or null for none") from error


def _series_of_rows(metric: str, rows: Sequence[Mapping[str, Any]]) -> ItemSeries:
    seen: dict[str, str] = {}
    for row in rows:
        if row["item"] in seen:
            what = f"{row['place']}: item {row['item']!r} of {metric} is also at {seen[row['item']]}"
            raise UserError(what, "an item that counts twice would look like more data", "remove one of the rows")
        seen[row["item"]] = row["place"]
    return ItemSeries(
        items=tuple(row["item"] for row in rows),
        clusters=tuple(row["cluster"] for row in rows),
        candidate=np.array([row["candidate"] for row in rows], dtype=np.float64),
        production=np.array([row["production"] for row in rows], dtype=np.float64),
    )


def _number(value: object) -> float:
    """A value as JSON gives it; null is NaN.

    Raises:
        TypeError: it is no number.
        ValueError: it is NaN, infinite, or would be as a float.
    """
    if value is None:
        return math.nan
    if not isinstance(value, int | float):
        raise TypeError(f"{reprlib.repr(value)} and no number")
    if not abs(value) <= LARGEST:
        raise ValueError("not finite, or too large")
    return float(value)
