from __future__ import annotations

from launch.report.charts import (
    BOTTOM,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    Axis,
    Chart,
    Line,
    axes_of,
    draw,
    readings,
    thin,
)


def chart(*points: tuple[float, float | None], logarithmic: bool = False) -> Chart:
    return Chart(title="t", unit="u", lines=[Line(name="a", points=points)], logarithmic=logarithmic)


def test_an_axis_maps_its_ends_onto_its_lengths() -> None:
    axis = Axis(low=0, high=10, start=100, end=0)
    assert [axis.position(value) for value in (0, 2.5, 10)] == [100, 75, 0]
    assert axis.ticks() == [0, 2, 4, 6, 8, 10]
    powers = Axis(low=1e-6, high=1e-2, start=0, end=4, logarithmic=True)
    assert [powers.position(value) for value in (1e-6, 1e-4, 1e-2)] == [0, 2, 4]


def test_a_gap_ends_a_line_and_is_read_off_as_one() -> None:
    gap = chart((0, 1.0), (1, 2.0), (2, None), (3, 3.0))
    assert draw(gap, 0).count('class="line line-0"') == 2
    assert [words for _, words in readings(gap)] == ["step 0: 1", "step 1: 2", "step 2: not finite", "step 3: 3"]
    assert [place for place, _ in readings(gap)] == [LEFT, 195.33, 332.67, RIGHT]


def test_what_has_no_span_is_drawn_all_the_same() -> None:
    middle = (TOP + BOTTOM) / 2
    assert f'cy="{middle}"' in draw(chart((7, 5.0)), 0)
    assert f'cy="{middle}"' in draw(chart((0, 3.0), (1, 3.0)), 0)
    assert 'class="line line-0"' not in draw(chart((0, None)), 0)
    assert 'class="line line-0"' in draw(chart((0, 0.0), (1, 0.0), logarithmic=True), 0)
    assert 'class="line line-0"' in draw(chart((0, -1e299), (1, 1e299)), 0)


def test_thinning_keeps_spikes_and_ends_in_order() -> None:
    values = [0.0] * 100_000
    values[777], values[5000] = 9.0, -9.0
    few = thin(tuple(enumerate(values)))
    assert len(few) <= MOST_POINTS + 2
    assert (777, 9.0) in few and (5000, -9.0) in few
    assert list(few) == sorted(few)


def test_what_is_small_is_not_drawn_as_if_it_were_0() -> None:
    """Points at 1e-07 and 1.1e-07 have different heights, and the tick of 1e-07 is at the first."""
    _, values = axes_of(chart((0, 1e-7), (1, 1.1e-7), logarithmic=True))
    assert values.position(1e-7) > values.position(1.1e-7) and values.low == 0.5e-7
    assert axes_of(chart((0, 0.0), (1, 1e-7), logarithmic=True))[1].low == 1e-9


def test_a_count_of_nothing_begins_at_0() -> None:
    _, values = axes_of(chart((0, 0.0), (1, 0.0)))
    assert (values.low, values.high) == (0.0, 1.0)
