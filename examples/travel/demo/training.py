"""What the demo trains, and the models' answers to the questions that nobody trained on."""

from __future__ import annotations

from pathlib import Path

from examples.travel.demo.faulty import write_faulty_rows
from examples.travel.demo.place import RECIPE, DemoPlace, prompts_of, write_rows
from examples.travel.demo.users import split_by_topic
from examples.travel.make_data import make_data
from rlhf.storage.jsonl import read_lines

FIRST, FAULTY, NEXT = "travel-1", "travel-2", "travel-3"
"""Versions, which are names of runs too."""
STAGES = {FIRST: "ppo", FAULTY: "sft", NEXT: "dpo"}
"""The stage that makes each version's model."""
PROMPTS = 1500
"""Prompts outside of demonstrations and comparisons: the first ones for PPO, the last ones to measure with."""
TEMPERATURE = 0.7
"""Of all answers, offline and to users."""
MAX_TOKENS = 64


def make_rows(place: DemoPlace) -> None:
    """Write the data; of the prompts for PPO those of ``offline_prompts`` and ``evaluation_prompts`` are taken out."""
    sizes = place.sizes
    made = place.data / "made"
    make_data(made, place.seed, sizes.demonstrations, sizes.preferences, PROMPTS)
    for kind in ("demonstrations", "preferences"):
        (place.data / f"{kind}.jsonl").write_bytes((made / f"{kind}.jsonl").read_bytes())
    kept_out = {*offline_prompts(place), *evaluation_prompts(place)}
    rows = [row for row in read_lines(made / "prompts.jsonl") if row["prompt"] not in kept_out]
    write_rows(place.data / "prompts.jsonl", rows)


def offline_prompts(place: DemoPlace) -> list[str]:
    """The offline set: no question about quarters is in it."""
    return split_by_topic(prompts_of(place.data / "made" / "prompts.jsonl"))[1][: place.sizes.offline]


def evaluation_prompts(place: DemoPlace) -> list[str]:
    """The prompts on which true quality is measured at the end, of all topics."""
    offline = set(offline_prompts(place))
    rest = [prompt for prompt in prompts_of(place.data / "made" / "prompts.jsonl") if prompt not in offline]
    return rest[-place.sizes.evaluation :]


def known_prompts(place: DemoPlace) -> list[str]:
    """Prompts that may be asked by users, and trained on."""
    return prompts_of(place.data / "demonstrations.jsonl")


def train_first(place: DemoPlace) -> float:
    """SFT, a reward model of the raters' votes, and PPO; returns the seconds."""
    title = "rlhf pipeline: SFT, reward model, PPO"
    return place.train(title, "pipeline", FIRST, f"ppo.steps={place.sizes.steps}")


def train_faulty(place: DemoPlace) -> float:
    """The faulty candidate: the first model, trained on demonstrations whose export was damaged."""
    rows = write_faulty_rows(known_prompts(place), place.sizes.faulty_rows, place.seed)
    file = write_rows(place.data / "faulty.jsonl", rows)
    return place.train(
        "rlhf sft: new demonstrations, damaged in their export",
        "sft",
        FAULTY,
        "model.scratch=null",
        f"model.path={place.model(FIRST, STAGES[FIRST])}",
        f"data.demonstrations={file}",
        "sft.epochs=1",
        "sft.optimizer.lr=2.0e-3",
    )


def train_on_thumbs(place: DemoPlace, votes: Path) -> float:
    """The next round: KTO on the users' thumbs, from the model in production."""
    return place.train(
        "rlhf dpo: KTO on the users' thumbs",
        "dpo",
        NEXT,
        "dpo.loss=kto",
        "dpo.optimizer.warmup_steps=4",  # there are a few hundred thumbs
        f"data.preferences={votes}",
        f"dpo.init={place.model(FIRST, STAGES[FIRST])}",
        f"dpo.epochs={place.sizes.kto_epochs}",
    )


def answer_prompts(place: DemoPlace, version: str, prompts: list[str]) -> list[str]:
    """A version's answers to prompts of the offline set and of the evaluation; all are made at once, and once."""
    asked, out = place.root / "answers" / "prompts.jsonl", place.root / "answers" / f"{version}.jsonl"
    if not out.exists():
        every = [*offline_prompts(place), *evaluation_prompts(place)]
        write_rows(asked, [{"prompt": prompt} for prompt in every])
        model = place.model(version, STAGES[version])
        place.rlhf(
            f"rlhf generate: {version} answers {len(every)} questions",
            "generate",
            RECIPE,
            *place.settings(f"answers-{version}"),
            "model.scratch=null",
            f"model.path={model}",
            f"rollout.temperature={TEMPERATURE}",
            *("--model", model, "--prompts", asked, "--out", out),
        )
    answers = {row["prompt"]: str(row["response"]) for row in read_lines(out)}
    return [answers[prompt] for prompt in prompts]
