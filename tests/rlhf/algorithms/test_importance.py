from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.algorithms.importance import importance_weights, token_importance
from rlhf.config.schema import AlgorithmConfig

MODES = ["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


def weights(
    ratios: list[float], mode: Any, cap: float, lengths: tuple[int, ...] = (), mask: list[int] | None = None
) -> list[float]:
    """The weights of tokens with these ratios of the trainer's probability to the engine's, which is ½ everywhere."""
    options = {} if mode == "none" else {"importance_cap": cap}
    algorithm = AlgorithmConfig(importance_sampling=mode, **options)
    engine = np.full(len(ratios), math.log(0.5), dtype=np.float32)
    old = (engine + np.log(ratios)).astype(np.float32)
    found = importance_weights(
        old,
        engine,
        np.array(lengths or (len(ratios),), dtype=np.int32),
        np.array(mask if mask is not None else [1] * len(ratios), dtype=bool),
        algorithm,
    )
    assert found.dtype == np.float32
    return found.tolist()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", [1, 1, 1, 1, 1]),
        ("token_truncate", [1.25, 0.25, 1.25, 0.5, 1]),
        ("token_mask", [0, 0.25, 0, 0.5, 1]),
        ("sequence_truncate", [0.5, 0.5, 1.25, 1.25, 1.25]),
        ("sequence_mask", [0.5, 0.5, 0, 0, 0]),
    ],
)
def test_each_mode_by_hand(mode: str, expected: list[float]) -> None:
    """Ratios 2, ¼ of one response and 3, ½, 1 of another: products ½ and 1½; the cap is 1¼."""
    assert weights([2, 0.25, 3, 0.5, 1], mode, 1.25, (2, 3)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", [1, 0, 1, 0, 0]),
        ("token_truncate", [2, 0, 3, 0, 0]),
        ("token_mask", [2, 0, 3, 0, 0]),
        ("sequence_truncate", [6, 0, 6, 0, 0]),
        ("sequence_mask", [6, 0, 6, 0, 0]),
    ],
)
def test_a_token_outside_the_mask_has_no_weight_and_no_part_in_the_product(mode: str, expected: list[float]) -> None:
    assert weights([2, 7, 3, 5, 9], mode, 6.5, (3, 2), [1, 0, 1, 0, 0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["token_mask", "sequence_mask"])
def test_a_mask_takes_out_what_is_beyond_the_cap_and_keeps_the_rest_whole(mode: str) -> None:
    below, above = weights([1.99, 2.01], mode, 2.0, (1, 1))
    assert below == pytest.approx(1.99, rel=1e-5)
    assert above == 0
    assert weights([1, 1.01], mode, 1.0, (1, 1)) == [1, 0]  # at the cap itself it stays, as all do on policy


@pytest.mark.parametrize("mode", ["token_truncate", "sequence_truncate"])
def test_the_exponent_is_clamped(mode: str) -> None:
    """Log-ratios of ±100, of one token or added up, count as ±20."""
    high, low = weights([math.exp(100), math.exp(-100)], mode, 1e30, (1, 1))
    assert high == pytest.approx(math.exp(20), rel=1e-5)
    assert low == pytest.approx(math.exp(-20), rel=1e-5)
    added_up = weights([math.exp(8)] * 3, "sequence_truncate", 1e30)
    assert added_up == pytest.approx([math.exp(20)] * 3, rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("garbage", [(np.nan, np.nan), (np.inf, np.inf), (-np.inf, np.nan), (0.0, -np.inf)])
def test_nothing_leaks_from_outside_the_mask(mode: Any, garbage: tuple[float, float]) -> None:
    algorithm, mask = AlgorithmConfig(importance_sampling=mode), np.array([True, False, True])
    old, engine = np.array([-1, garbage[0], -2], np.float32), np.array([-1, garbage[1], -2], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = importance_weights(old, engine, np.array([3], np.int32), mask, algorithm)
    assert found.tolist() == [1, 0, 1]


@pytest.mark.parametrize("mode", MODES)
def test_weights_are_exactly_1_where_the_engine_agrees(mode: Any) -> None:
    assert weights([1.0] * 4, mode, 2.0, (1, 0, 3)) == [1.0] * 4


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("none", [1, 1, 1]), ("token_truncate", [1.25, 0.25, 1.25]), ("token_mask", [0, 0.25, 1.25])],
)
def test_the_update_has_the_weights_of_tokens_by_hand(mode: Any, expected: list[float]) -> None:
    """Ratios 2, ¼ and 1¼; the cap is 1¼, and a weight equal to it stays."""
    algorithm = AlgorithmConfig(importance_sampling=mode, **({} if mode == "none" else {"importance_cap": 1.25}))
    engine = torch.full((3,), math.log(0.5))
    old = torch.tensor([1, 0.125, 0.625]).log()
    found = token_importance(old, engine, algorithm)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(token_importance(old + 1000, engine, algorithm)).all()
