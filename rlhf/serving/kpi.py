"""From a KPI's data to its effect: direction, pairing, limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf.errors import UserError
from rlhf.evaluation.agreement_with_people import MOST_FAILED
from rlhf.serving.gate_data import CountSeries, ItemSeries, Series, first_units_digest
from rlhf.serving.gate_spec import DecidedBy, KpiConfig
from rlhf.serving.measurement import (
    Measurement,
    Proportion,
    UnitValues,
    measure_difference,
    measure_proportion,
    measure_values,
)
from rlhf.types import Float64

UNIT = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class MeasuredKpi:
    """A measurement in which larger is better, and the way back to the user's unit: offset + sign · effect."""

    measurement: Measurement
    bar: float
    """What the effect must exceed."""
    sign: int
    offset: float
    seen: Mapping[str, Any]
    """What the data were, to recognise them at a later look."""
    units: Float64
    """(U,) units of values by item; empty for counts."""

    def in_unit(self, effect: float) -> float:
        """An effect in the user's unit."""
        return self.offset + self.sign * effect

    def has_grown_from(self, before: Mapping[str, Any]) -> bool:
        """Whether the units begin with those of an earlier look, given what was ``seen`` then."""
        count = int(before["units"])
        return len(self.units) >= count and first_units_digest(self.units, count) == before["digest"]


def measure_kpi(name: str, kpi: KpiConfig, data: Series, is_sequential: bool) -> MeasuredKpi:
    """Measure a KPI.

    Raises:
        UserError: production was not measured, values are missing or out of range, or the range is not known.
    """
    if isinstance(data, CountSeries):
        return _of_counts(name, kpi, data, is_sequential)
    return _of_items(name, kpi, data, is_sequential)


def _bar(kpi: KpiConfig, offset: float) -> float:
    """The bar, oriented so that larger is better."""
    if kpi.decided_by is DecidedBy.ABSOLUTE:
        assert kpi.threshold is not None  # the schema requires it
        return kpi.threshold if kpi.direction == "higher" else offset - kpi.threshold
    margin = kpi.margin or 0.0
    return -margin if kpi.decided_by is DecidedBy.NON_INFERIORITY else margin


def _of_counts(name: str, kpi: KpiConfig, data: CountSeries, is_sequential: bool) -> MeasuredKpi:
    is_higher = kpi.direction == "higher"

    def oriented(arm: Proportion) -> Proportion:
        return arm if is_higher else Proportion(successes=arm.n - arm.successes, n=arm.n)

    _require_reachable(name, kpi, UNIT)
    seen = {"candidate": [data.candidate.successes, data.candidate.n]}
    if not kpi.is_compared:
        found, offset = measure_proportion(oriented(data.candidate), is_sequential), 0.0 if is_higher else 1.0
    elif data.production is None:
        raise _no_production(name)
    else:
        seen["production"] = [data.production.successes, data.production.n]
        found, offset = measure_difference(oriented(data.candidate), oriented(data.production), is_sequential), 0.0
    sign = 1 if is_higher else -1
    return MeasuredKpi(measurement=found, bar=_bar(kpi, offset), sign=sign, offset=offset, seen=seen, units=np.zeros(0))


def _of_items(name: str, kpi: KpiConfig, data: ItemSeries, is_sequential: bool) -> MeasuredKpi:
    if kpi.is_compared and np.isnan(data.production).all() and len(data.items):
        raise _no_production(name)
    used = data.candidate - data.production if kpi.is_compared else data.candidate
    _require_few_missing(name, int(np.isnan(used).sum()), len(used))
    limits = _limits(name, kpi, data)
    _require_reachable(name, kpi, limits)
    units, offset = data.units(used), 0.0
    is_seen = limits is None and not is_sequential
    if is_seen:
        limits = _seen_limits(data, units, kpi.is_compared)
    elif kpi.is_compared and limits is not None:
        limits = (limits[0] - limits[1], limits[1] - limits[0])
    if kpi.direction == "lower":
        offset = sum(limits) if limits is not None else 0.0
        units = offset - units
    if is_sequential and limits is None:
        fix = f"give kpis.{name}.range, the lowest and highest value that is possible, or looks: fixed"
        raise UserError(f"the range of {name} is not known", "tests over repeated looks need it", fix)
    found = measure_values(UnitValues(values=units, range=limits, is_range_seen=is_seen), is_sequential)
    sign = 1 if kpi.direction == "higher" else -1
    seen = {"units": len(units), "digest": first_units_digest(units, len(units))}
    return MeasuredKpi(measurement=found, bar=_bar(kpi, offset), sign=sign, offset=offset, seen=seen, units=units)


def _limits(name: str, kpi: KpiConfig, data: ItemSeries) -> tuple[float, float] | None:
    """Possible values of one arm: those of the file, or 0 and 1 where there are no others."""
    values = np.concatenate([data.candidate, data.production])
    known = values[~np.isnan(values)]
    if kpi.range is None:
        return UNIT if np.isin(known, UNIT).all() else None
    if len(known) and not (kpi.range[0] <= known.min() and known.max() <= kpi.range[1]):
        wrong = known.min() if known.min() < kpi.range[0] else known.max()
        raise UserError(f"{name} has the value {wrong:g}, outside its range {list(kpi.range)}", fix="correct the range")
    return kpi.range


def _seen_limits(data: ItemSeries, units: Float64, is_compared: bool) -> tuple[float, float] | None:
    """Range of the units where the file gives none, as the values show it; None if the units do not vary.

    It makes both decisions harder than no range would: its worst value counts as one more observation. Where all values
    are in [0, 1], that is taken for the range of one arm.
    """
    if not len(units) or np.ptp(units) == 0:
        return None
    values = np.concatenate([data.candidate, data.production])
    is_unit = bool(np.all(np.isnan(values) | ((values >= 0) & (values <= 1))))
    if is_compared:
        most = 1.0 if is_unit else float(np.abs(units).max())
        return -most, most
    return UNIT if is_unit else (float(units.min()), float(units.max()))


def _require_reachable(name: str, kpi: KpiConfig, limits: tuple[float, float] | None) -> None:
    """Refuse a threshold that no mean, or every mean, would pass: a percentage for a fraction, for example."""
    if limits is not None and kpi.threshold is not None and not limits[0] < kpi.threshold < limits[1]:
        what = f"kpis.{name}.threshold = {kpi.threshold:g}"
        raise UserError(what, f"its values lie from {limits[0]:g} to {limits[1]:g}", "choose one between them")


def _require_few_missing(name: str, missing: int, total: int) -> None:
    if missing > MOST_FAILED * total:
        why = f"more than {MOST_FAILED:.0%} of its values are missing: what is left may not be like the rest"
        raise UserError(f"{name} has no value on {missing:,} of {total:,} items", why, "measure all items")


def _no_production(name: str) -> UserError:
    fix = "add production's values to the results, or decide by an absolute threshold"
    return UserError(f"{name} is compared with production, of which the results hold nothing", fix=fix)
