"""Tests of how samples are dispatched to several engines of which some are lost; engines are fakes in this process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from actors import dispatch as dispatch_module
from actors.dispatch import Dispatcher, GenerationCall
from actors.rollout import BlockSummary
from actors.waiting import PhaseContext
from rlhf.errors import LostError

CONTEXT = PhaseContext(phase="rollout", step=2)


class Stream:
    """A stream of one block per sample, of an engine that answers when the test says so."""

    def __init__(self, engine: Fake, positions: Sequence[int]) -> None:
        self.engine, self.positions, self.left = engine, list(positions), list(positions)

    def __next__(self) -> Any:
        """A block and its summary in turn."""
        raise AssertionError("replaced by the fake of _next_block")


class Fake:
    """An engine; ``given`` are the batches that it got, ``open_before`` how many samples it had to answer then."""

    def __init__(self, name: str) -> None:
        self.name, self.actor, self.given = name, self, list[list[int]]()
        self.streams, self.open_before = list[Stream](), list[int]()
        self.generate = SimpleNamespace(options=lambda num_returns: SimpleNamespace(remote=self._generate))

    def _generate(self, positions: list[int], indices: list[int], seeds: list[int], size: int) -> Stream:
        self.given.append(positions)
        self.open_before.append(sum(len(stream.left) for stream in self.streams))
        self.streams.append(Stream(self, positions))
        return self.streams[-1]


class Fleet:
    """Engines that are lost when the test says so; lost ones are not replaced, unless none serves."""

    def __init__(self, count: int) -> None:
        self.all = [Fake(f"rollout engine {i}") for i in range(count)]
        self.lost, self.reports = set[str](), list[tuple[str, ...]]()
        self.poison_prompts: set[int] = set()
        deadlines = SimpleNamespace(next_ready=self._next_ready)
        self.supervisor: Any = SimpleNamespace(
            deadlines=deadlines, with_dead_actors=lambda error: error, is_continued=lambda error: False
        )
        self.script: list[Any] = []
        self.dispatcher: Dispatcher

    @property
    def serving(self) -> list[Fake]:
        return [engine for engine in self.all if engine.name not in self.lost]

    def require_replaceable(self, error: LostError) -> None:
        if not error.names:
            raise error

    def stop_serving(self, names: Sequence[str]) -> None:
        self.lost |= set(names)

    def replace_lost(self, error: LostError, context: PhaseContext, samples: int = 0) -> None:
        self.reports.append((*error.names, str(samples)))

    def restore_serving(self, context: PhaseContext) -> None:
        self.lost.clear()

    def _next_ready(self, pending: Any, context: PhaseContext) -> tuple[Any, str]:
        """What the script says: the engines that are lost next; without one, any stream is answered."""
        while self.script:
            names = self.script.pop(0)
            raise LostError("gone", tuple(f"rollout engine {i}" for i in names), "died")
        stream = next(iter(self.dispatcher.streams.assignments))
        return stream, stream.engine.name

    def run(self, count: int, script: Iterable[Sequence[int]]) -> list[int]:
        """The positions that are answered, in their order, with these losses before the first answer."""
        self.script = list(script)
        call = GenerationCall(indices=range(count), seeds=range(count), context=CONTEXT, block_size=1)
        self.dispatcher = Dispatcher(self, call)
        return [place for _, summary in self.dispatcher.answers() for place in summary.positions]

    def next_block(self, stream: Stream, name: str) -> tuple[Any, BlockSummary] | None:
        if not stream.left:
            return None
        place = (stream.left.pop(0),)
        return None, BlockSummary(stream="", tokens=1, positions=place, set_aside=(), faults=())


class NoPending:
    """In place of ``Pending``: the fake fleet says what is ready."""

    def add(self, key: Any, name: str) -> None:
        """Nothing is awaited."""

    def discard(self, keys: Any) -> None:
        """Nor forgotten."""

    def replace(self, names: Any) -> None:
        """Nor exchanged."""


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(dispatch_module, "Pending", NoPending)
    found = Fleet(4)
    monkeypatch.setattr(Dispatcher, "_next_block", lambda self, stream, name: found.next_block(stream, name))
    return found


def test_the_engines_that_remain_take_the_work_of_those_lost_at_once(fleet: Fleet) -> None:
    """Two of four are lost together: their ten samples go to the two others, which still have their own."""
    assert sorted(fleet.run(20, [(0, 1)])) == list(range(20))
    assert [sum(map(len, engine.given)) for engine in fleet.all] == [5, 5, 10, 10]
    assert [len(engine.given) for engine in fleet.all] == [1, 1, 2, 2]
    assert fleet.reports == [("rollout engine 0", "rollout engine 1", "10")], "one loss"


def test_they_have_it_before_the_loss_is_diagnosed(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    given_by_then = []
    monkeypatch.setattr(fleet, "replace_lost", lambda *_: given_by_then.append(sum(map(len, fleet.all[1].given))))
    fleet.run(8, [(0,)])
    assert given_by_then == [3], "its own two and one of two"


def test_engines_lost_one_after_another_make_no_sample_a_suspect_alone(fleet: Fleet) -> None:
    """Three of four are lost in turn. Samples lost twice are given out in halves, and nothing is quarantined."""
    assert sorted(fleet.run(16, [(0,), (1,), (2,)])) == list(range(16))
    assert fleet.poison_prompts == set()
    assert fleet.all[3].given[0] == [3, 7, 11, 15]


def test_suspects_have_an_engine_for_themselves(fleet: Fleet) -> None:
    """Engine 0 is lost with 4 samples, and engine 1 with its own and a share of them, which becomes suspect."""
    fleet.run(16, [(0,), (1,)])
    shared = fleet.all[1].given[1]
    assert len(shared) == 2, "of engine 0's four samples, shared by three"
    found = {
        positions[0]: (engine.name, open_before)
        for engine in fleet.all[2:]
        for positions, open_before in zip(engine.given, engine.open_before)
        if positions in ([shared[0]], [shared[1]])
    }
    assert found.keys() == set(shared), "each half is given out alone"
    assert {open_before for _, open_before in found.values()} == {0}, "to an engine that has answered all else"


def test_what_a_dead_engine_got_is_not_held_against_it(fleet: Fleet) -> None:
    """Ray reports two of three deaths first; the third engine got some of their samples, when it was dead already."""
    fleet.supervisor.is_continued = lambda error: bool(fleet.reports)
    assert sorted(fleet.run(16, [(0, 1), (2,)])) == list(range(16))
    assert [batch for batch in fleet.all[3].given if len(batch) < 2] == [], "none was divided into single samples"


def test_when_none_is_left_all_that_waits_is_given_to_the_first_that_serves_again(fleet: Fleet) -> None:
    assert sorted(fleet.run(8, [(0, 1, 2, 3)])) == list(range(8))


def test_a_loss_that_no_engine_explains_ends_the_call(fleet: Fleet) -> None:
    with pytest.raises(LostError):
        fleet.run(4, [()])
