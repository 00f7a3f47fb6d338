"""Coefficients of agreement as formulas over sums of per-item parts.

A part is the contribution of one item; a coefficient is a function of the parts' sum. Sums of resampled items, stacked
along leading axes, therefore give a bootstrap in one call. An undefined coefficient is NaN here, and becomes None with
a reason in ``rlhf.evaluation.bootstrap.estimate``.

Shapes: U items, K categories; "..." any leading axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike

from rlhf.types import Float64


class Scale(StrEnum):
    """What a difference between two categories means."""

    NOMINAL = "nominal"
    """Different is different."""
    ORDINAL = "ordinal"
    """Categories are ordered; a difference counts the values between them."""
    INTERVAL = "interval"
    """Categories are numbers; a difference is squared."""


def divide(top: Float64, bottom: Float64) -> Float64:
    """``top / bottom``, NaN where ``bottom`` is 0."""
    return np.divide(top, bottom, out=np.full(np.broadcast(top, bottom).shape, np.nan), where=bottom != 0)


def coincidences(counts: ArrayLike) -> Float64:
    """(U, K, K) parts of Krippendorff's alpha: pairs of values within an item, each item weighted 1/(its values − 1).

    Args:
        counts: (U, K) values of each item in each category; items with fewer than two contribute nothing.
    """
    n = np.asarray(counts, dtype=np.float64)
    pairs = n[:, :, None] * n[:, None, :] - n[:, :, None] * np.eye(n.shape[1])
    others = n.sum(1) - 1
    return pairs / np.where(others > 0, others, np.inf)[:, None, None]


def krippendorff_alpha(coincidence: Float64, scale: Scale, values: Sequence[float] | None = None) -> Float64:
    """Krippendorff's alpha, (...): 1 − D_o/D_e, from summed coincidences (..., K, K).

    D_o = Σ_ck o_ck δ²_ck and D_e = Σ_ck n_c n_k δ²_ck/(n − 1), with n_c = Σ_k o_ck and n = Σ_c n_c. Missing votes are
    allowed (Krippendorff 2011, "Computing Krippendorff's alpha-reliability"). Undefined if all values are in one
    category.

    Args:
        values: numbers of the categories on an interval scale; 0, 1, 2, ... if None.
    """
    n_c = coincidence.sum(-1)
    distance = _distances(n_c, scale, values)
    observed = (coincidence * distance).sum((-2, -1))
    expected = (n_c[..., :, None] * n_c[..., None, :] * distance).sum((-2, -1))
    return 1 - divide(observed * (n_c.sum(-1) - 1), expected)


def _distances(n_c: Float64, scale: Scale, values: Sequence[float] | None) -> Float64:
    """δ² between categories, (..., K, K). On the ordinal scale, that of the categories' mid-ranks."""
    k = n_c.shape[-1]
    if scale is Scale.NOMINAL:
        return 1 - np.eye(k)
    position = np.arange(k) if values is None else np.asarray(values, dtype=np.float64)
    if scale is Scale.ORDINAL:
        position = np.cumsum(n_c, -1) - n_c / 2
    return np.square(position[..., :, None] - position[..., None, :])


def fleiss_parts(counts: ArrayLike) -> Float64:
    """(U, K + 2) parts of raw agreement and Fleiss' kappa: [P_u, 1, n_u1, ..., n_uK], zero below two votes.

    P_u is the fraction of pairs of the item's votes that agree.

    Args:
        counts: (U, K) votes of each item in each category.
    """
    n = np.asarray(counts, dtype=np.float64)
    m = n.sum(1)
    agreeing = (n * (n - 1)).sum(1) / np.maximum(m * (m - 1), 1)
    return np.column_stack([agreeing, np.ones(len(n)), n]) * (m > 1)[:, None]


def raw_agreement(parts: Float64) -> Float64:
    """Mean over items of the fraction of agreeing pairs, (...), from summed ``fleiss_parts`` (..., K + 2)."""
    return divide(parts[..., 0], parts[..., 1])


def fleiss_kappa(parts: Float64) -> Float64:
    """Fleiss' kappa, (...): (P − P_e)/(1 − P_e), from summed ``fleiss_parts`` (..., K + 2).

    P is ``raw_agreement`` and P_e = Σ_c p_c², p_c the fraction of votes in category c (Fleiss 1971, Psychol. Bull. 76,
    378-382); items may have different numbers of votes, as in Fleiss, Levin and Paik (2003), section 18.3. Undefined if
    all votes are in one category.
    """
    share = parts[..., 2:] / np.maximum(parts[..., 2:].sum(-1, keepdims=True), 1)
    chance = np.square(share).sum(-1)
    return divide(raw_agreement(parts) - chance, _unless_certain(chance))


def cohen_kappa(table: Float64) -> Float64:
    """Cohen's kappa, (...): (p_o − p_e)/(1 − p_e), from tables (..., K, K) of two raters' votes on the same items.

    Cohen 1960, Educ. Psychol. Meas. 20, 37-46. Undefined if both raters use the same single category.
    """
    share = table / np.maximum(table.sum((-2, -1), keepdims=True), 1)
    observed = np.trace(share, axis1=-2, axis2=-1)
    chance = (share.sum(-1) * share.sum(-2)).sum(-1)
    return divide(observed - chance, _unless_certain(chance))


def table_agreement(table: Float64) -> Float64:
    """Fraction of the items of tables (..., K, K) on the diagonal, (...)."""
    return divide(np.trace(table, axis1=-2, axis2=-1), table.sum((-2, -1)))


def _unless_certain(chance: Float64) -> Float64:
    """1 − chance, exactly 0 where rounding left a remainder of it."""
    return np.where(1 - chance > 1e-12, 1 - chance, 0.0)
