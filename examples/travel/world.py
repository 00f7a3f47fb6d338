"""A small invented country: cities, and in them inns, museums and gardens with a quarter, a price and opening hours.

Everything follows from the seed. A prompt shows the assistant the office's notes on one place and a traveller's
question about it, so that the right answer can always be read off the prompt.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import chain, product

CITIES = (
    "Arvel", "Bresk", "Corlin", "Dunmar", "Elsby", "Fennick", "Garrow", "Harlen", "Iskar", "Kelmar",
    "Morvane", "Tressel",
)  # fmt: skip
FIRST_NAMES = (
    "Amber", "Birch", "Copper", "Dove", "Falcon", "Garnet", "Heron", "Iris", "Juniper", "Kestrel",
    "Lantern", "Maple", "Otter", "Poppy", "Raven", "Thistle", "Violet", "Willow", "Yarrow", "Silver",
)  # fmt: skip
QUARTERS = ("old", "harbour", "market", "hill", "river", "station")
PRICES = {"inn": range(60, 100, 5), "museum": range(40, 60, 5), "garden": range(25, 40, 5)}
"""Crowns for a night at an inn, for a ticket elsewhere."""
ADMISSION = {"inn": "a night", "museum": "a ticket", "garden": "a ticket"}

N_CITIES = 8
PLACES_PER_KIND = 2
"""Inns, museums and gardens of each city."""

PREFACES = ("", "Hello.", "We are two.", "I travel alone.", "We come tomorrow.")
QUESTIONS = {
    "price": (
        "How much is {admission}?",
        "What does {admission} cost?",
        "What is the price?",
        "Is it expensive?",
        "What do I pay?",
    ),
    "hours": (
        "When is it open?",
        "What are the hours?",
        "When does it open and close?",
        "How long is it open?",
        "Is it open late?",
    ),
    "quarter": (
        "Where is it?",
        "Which quarter is it in?",
        "Where do I find it?",
        "Which part of town is it in?",
        "Where should I look?",
    ),
}
"""Ways of asking, by topic."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """An inn, a museum or a garden. ``price`` is in crowns, ``opens`` and ``closes`` are full hours of the day."""

    kind: str
    name: str
    city: str
    quarter: str
    price: int
    opens: int
    closes: int

    @property
    def notes(self) -> str:
        """What the assistant has before it."""
        return f"{self.city}: {self.name}, {self.quarter} quarter, {self.price} crowns, {self.opens} to {self.closes}."


@dataclass(frozen=True, kw_only=True)
class World:
    """The country of one seed."""

    seed: int
    cities: tuple[str, ...]
    places: tuple[Place, ...]


def make_world(seed: int = 0) -> World:
    """The country that belongs to ``seed``: 8 cities with 2 inns, 2 museums and 2 gardens each, no name twice."""
    rng = random.Random(f"world-{seed}")
    cities = tuple(rng.sample(CITIES, N_CITIES))
    places = tuple(place for kind in PRICES for place in _places_of(kind, cities, rng))
    return World(seed=seed, cities=cities, places=places)


def _places_of(kind: str, cities: tuple[str, ...], rng: random.Random) -> list[Place]:
    sites = [city for city in cities for _ in range(PLACES_PER_KIND)]
    first_names = rng.sample(FIRST_NAMES, len(sites))
    return [
        Place(
            kind=kind,
            name=f"{first_name} {kind.capitalize()}",
            city=city,
            quarter=rng.choice(QUARTERS),
            price=rng.choice(PRICES[kind]),
            opens=rng.randint(6, 10),
            closes=rng.randint(17, 22),
        )
        for city, first_name in zip(sites, first_names, strict=True)
    ]


def make_prompts(world: World) -> list[str]:
    """Every prompt that this world allows, each once, in a fixed order."""
    wordings = chain.from_iterable(QUESTIONS.values())
    return [make_prompt(*choice) for choice in product(world.places, PREFACES, wordings)]


def make_prompt(place: Place, preface: str, wording: str) -> str:
    """The office's notes on a place, and a question about it."""
    question = wording.format(admission=ADMISSION[place.kind])
    return f"{place.notes}\nTraveller: {f'{preface} {question}'.strip()}\nAssistant:"
