from __future__ import annotations

import gc

import pytest

from rlhf.garbage import paused_collection


def test_nothing_is_collected_inside_and_what_was_made_there_is_frozen() -> None:
    frozen = gc.get_freeze_count()
    with paused_collection():
        assert not gc.isenabled()
        kept = [[i] for i in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(kept)
    gc.unfreeze()


def test_a_process_that_collects_does_so_again_after_an_error() -> None:
    try:
        with pytest.raises(ImportError), paused_collection():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()


def test_a_process_that_collects_nothing_goes_on_so_also_after_an_error() -> None:
    gc.disable()
    try:
        with pytest.raises(ImportError), paused_collection():
            raise ImportError
        assert not gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()
