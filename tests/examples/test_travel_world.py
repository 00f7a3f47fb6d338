from __future__ import annotations

from collections import Counter

import pytest

from examples.travel.guideline import read_prompt
from examples.travel.world import make_prompts, make_world


def test_the_same_seed_makes_the_same_world() -> None:
    assert make_world(3) == make_world(3)


def test_another_seed_makes_another_world() -> None:
    assert make_world(0).places != make_world(1).places
    assert make_world(0).cities != make_world(1).cities


@pytest.mark.parametrize("seed", range(5))
def test_every_city_has_two_places_of_each_kind_and_no_name_comes_twice(seed: int) -> None:
    world = make_world(seed)
    assert Counter((place.city, place.kind) for place in world.places) == {
        (city, kind): 2 for city in world.cities for kind in ("inn", "museum", "garden")
    }
    assert len({place.name for place in world.places}) == len(world.places) == 48


@pytest.mark.parametrize("seed", range(3))
def test_every_prompt_is_unique_and_carries_its_place_and_facts(seed: int) -> None:
    world = make_world(seed)
    prompts = make_prompts(world)
    assert len(prompts) == len(set(prompts)) == 48 * 5 * 15
    place_by_name = {place.name: place for place in world.places}
    for prompt in prompts:
        task = read_prompt(prompt)
        place = place_by_name[task.name]
        assert (task.kind, task.city) == (place.kind, place.city)
        assert task.facts == {
            "price": str(place.price),
            "hours": f"{place.opens} to {place.closes}",
            "quarter": place.quarter,
        }
    assert Counter(read_prompt(prompt).topic for prompt in prompts) == dict.fromkeys(
        ("price", "hours", "quarter"), 1200
    )
