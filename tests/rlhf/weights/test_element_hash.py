"""Tests of the hash of elements: its two forms against whole numbers of any size, and what it notices."""

from __future__ import annotations

import math
import struct
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rlhf.device import compiles_loops
from rlhf.weights import element_hash as module
from rlhf.weights import hash_loop
from rlhf.weights.element_hash import FACTORS, element_hash_sum, passes, signed64

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def matrix(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(12, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def scalar_hash(value: float) -> int:
    """The same mix of a float32's bits in whole numbers of any size, one element at a time."""
    mask = 2**64 - 1
    [bits] = struct.unpack("<i", struct.pack("<f", value))
    mixed = bits * 0x9E3779B97F4A7C15 & mask
    mixed = (mixed ^ (signed64(mixed) >> 31 & mask)) * 0xBF58476D1CE4E5B9 & mask
    return signed64(mixed ^ (signed64(mixed) >> 29 & mask))


@given(st.lists(st.floats(width=32, allow_nan=False).filter(lambda x: math.copysign(1, x) > 0 or x), max_size=20))
def test_both_forms_give_the_sum_of_arithmetic_without_overflow(values: list[float]) -> None:
    tensor, expected = torch.tensor(values), signed64(sum(scalar_hash(value) for value in values))
    assert element_hash_sum(tensor) == expected
    assert int(passes(tensor)) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_forms_agree_on_every_number_of_two_bytes_and_on_some_of_four(dtype: torch.dtype) -> None:
    bits, width = (torch.int32, 32) if dtype == torch.float32 else (torch.int16, 16)
    step = 2**width // 2**16
    numbers = torch.arange(-(2 ** (width - 1)), 2 ** (width - 1), step).to(bits).view(dtype)
    numbers = numbers[~numbers.isnan()]  # an addition may set the bit of a NaN that says that it is quiet
    assert element_hash_sum(numbers) == int(passes(numbers))
    assert any(math.copysign(1, zero) < 0 for zero in numbers[numbers == 0]), "-0.0 is among them"


def test_a_matrix_in_any_layout_is_hashed_by_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = nn.Parameter(torch.randn(6, 8))
    expected = int(passes(tensor.detach().flatten()))
    monkeypatch.setattr(module, "passes", lambda part: pytest.fail("PyTorch's passes"))
    halves = torch.zeros(6, 16)
    halves[:, ::2] = tensor.detach()
    for layout in (tensor, tensor.T, tensor.T.contiguous(), halves[:, ::2], tensor.reshape(2, 3, 8).permute(2, 0, 1)):
        assert element_hash_sum(layout) == expected
    assert element_hash_sum(tensor[:0]) == 0


def without_kept(monkeypatch: pytest.MonkeyPatch, kept: Any) -> list[bool]:
    """Has numba give what was kept, or raise it; returns a list that grows with each compilation without keeping."""
    compiled, compiler = [], numba.njit

    def njit(*arguments: Any, cache: bool = False, **options: Any) -> Any:
        if not cache:
            compiled.append(True)
            return compiler(*arguments, **options)
        if isinstance(kept, Exception):
            raise kept
        return lambda loop: kept

    monkeypatch.setattr(numba, "njit", njit)
    return compiled


def other_shift(bits: np.ndarray, minus_zero: int, factor: int, other: int) -> np.int64:
    return hash_loop.hash_loop(bits, minus_zero, factor, other - 2)


KEPT = [RuntimeError("no locator available"), OSError("read-only file system"), EOFError("damaged"), other_shift]


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: getattr(kept, "__name__", type(kept).__name__))
def test_where_the_loop_is_not_kept_each_process_compiles_it(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = without_kept(monkeypatch, kept)
    bits = matrix().flatten().view(torch.int32)
    assert int(hash_loop.compiled()(bits.numpy(), 0, *FACTORS)) == int(passes(bits.view(torch.float32)))
    assert compiled == [True]


def test_what_is_kept_and_right_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = hash_loop.hash_loop
    assert without_kept(monkeypatch, kept) == []
    assert hash_loop.compiled() is kept


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64, torch.float64])
def test_numbers_of_other_kinds_are_left_to_the_passes(dtype: torch.dtype) -> None:
    assert not compiles_loops(torch.zeros(3, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_order_and_shape_do_not_matter(dtype: torch.dtype) -> None:
    tensor = matrix(dtype=dtype)
    shuffled = tensor.flatten()[torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(1))]
    assert element_hash_sum(shuffled) == element_hash_sum(tensor) == element_hash_sum(tensor.T)


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_with_zeros_of_either_sign_does_not_matter(dtype: torch.dtype) -> None:
    tensor = matrix(dtype=dtype)
    zeros = torch.zeros(5, 8, dtype=dtype)
    assert element_hash_sum(torch.cat([tensor, zeros, -zeros])) == element_hash_sum(tensor) != 0


@given(
    place=st.integers(0, 95),
    up=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 50),
)
def test_one_element_changed_by_its_last_bit_is_seen(place: int, up: bool, dtype: torch.dtype, seed: int) -> None:
    tensor = matrix(seed, dtype=dtype)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    changed = tensor.clone()
    changed.view(-1).view(bits)[place] += 1 if up else -1
    assert (changed != tensor).sum() == 1
    assert element_hash_sum(changed) != element_hash_sum(tensor)


@given(place=st.integers(0, 95), dtype=st.sampled_from(DTYPES))
def test_a_changed_sign_is_seen(place: int, dtype: torch.dtype) -> None:
    tensor = matrix(dtype=dtype)
    changed = tensor.clone()
    changed.view(-1)[place] *= -1
    assert element_hash_sum(changed) != element_hash_sum(tensor)
    assert element_hash_sum(-tensor) != element_hash_sum(tensor)


def test_changes_that_leave_the_sum_of_the_numbers_alone_are_seen() -> None:
    assert element_hash_sum(torch.tensor([1.0, 3.0])) != element_hash_sum(torch.tensor([2.0, 2.0]))
    assert element_hash_sum(torch.tensor([1.0, -1.0])) != 0
    assert element_hash_sum(torch.tensor([1.0, 1.0])) != element_hash_sum(torch.tensor([1.0]))


def test_another_dtype_is_another_fingerprint() -> None:
    tensor = torch.ones(4)
    assert element_hash_sum(tensor) != element_hash_sum(tensor.to(torch.bfloat16))


def test_large_tensors_are_hashed_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = matrix()
    whole = element_hash_sum(tensor)
    monkeypatch.setattr(module, "compiles_loops", lambda values: False)
    monkeypatch.setattr(module, "slice_elements", lambda device: 7)
    assert element_hash_sum(tensor) == whole
    assert element_hash_sum(tensor[:0]) == 0


def test_vllm_may_look_into_every_module_after_the_loop_was_compiled() -> None:
    """As it does when an engine starts, for kernels of Triton that it replaces."""
    from vllm.triton_utils.dispatcher import _rebind_kernels

    def kernel() -> None:
        pass

    _rebind_kernels([(kernel, kernel)])
    assert numba.njit(lambda x: x + 1)(1) == 2, "the library of numba answers as before"
