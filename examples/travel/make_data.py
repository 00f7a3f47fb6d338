"""Write the example's data: ``python -m examples.travel.make_data --out data/travel --seed 0``."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from examples.travel.answers import write_answer, write_flawed_answer, write_ideal_answer
from examples.travel.guideline import quality
from examples.travel.raters import RATERS, Comparison, ceiling, label
from examples.travel.world import make_prompts, make_world
from rlhf.data.read import read_rows
from rlhf.errors import UserError
from rlhf.evaluation.accuracy import CEILING_DATA
from rlhf.records import DataFile

FLAWED_SHARE = 0.25
"""Share of the comparisons in which one answer has a flaw of a policy under optimisation."""

Row = dict[str, str]


def make_data(out: Path, seed: int, demonstrations: int, preferences: int, prompts: int) -> dict[str, Any]:
    """Write ``demonstrations.jsonl``, ``preferences.jsonl``, ``prompts.jsonl`` and ``meta.json`` into ``out``.

    The prompts of ``prompts.jsonl`` occur in neither of the other files. The same arguments give the same bytes.

    Returns:
        What ``meta.json`` holds.

    Raises:
        UserError: a count is not positive, or the world has not prompts enough.
    """
    ppo_prompts, known_prompts = _split_prompts(seed, demonstrations, preferences, prompts)
    rows = _demonstrations(known_prompts, demonstrations, random.Random(f"demonstrations-{seed}"))
    comparisons = _comparisons(known_prompts, preferences, random.Random(f"comparisons-{seed}"))
    out.mkdir(parents=True, exist_ok=True)
    _write_lines(out / "demonstrations.jsonl", rows)
    _write_lines(out / "preferences.jsonl", _labelled(comparisons, random.Random(f"labels-{seed}")))
    _write_lines(out / "prompts.jsonl", ({"prompt": prompt} for prompt in ppo_prompts))
    meta = {
        "seed": seed,
        "counts": {"demonstrations": demonstrations, "preferences": preferences, "prompts": prompts},
        "raters": [asdict(rater) for rater in RATERS],
        "flawed_share": FLAWED_SHARE,
        "accuracy_ceiling": ceiling(comparisons),
        CEILING_DATA: [_digest(out / "preferences.jsonl")],
        "demonstration_quality": _mean_quality(rows),
        "best_quality": _mean_quality(_answer_all(ppo_prompts, write_ideal_answer, random.Random(f"ideal-{seed}"))),
    }
    (out / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return meta


def _split_prompts(seed: int, demonstrations: int, preferences: int, prompts: int) -> tuple[list[str], list[str]]:
    """PPO's prompts and, apart from them, those that demonstrations and comparisons share."""
    every = make_prompts(make_world(seed))
    if min(demonstrations, preferences, prompts) < 1:
        raise UserError(
            "every count must be at least 1", fix="give --demonstrations, --preferences and --prompts from 1 up"
        )
    if prompts >= len(every):
        raise UserError(
            f"--prompts {prompts} is too many",
            f"this world has {len(every)} prompts, and demonstrations need some that PPO does not use",
            f"ask for fewer than {len(every)}",
        )
    random.Random(f"prompts-{seed}").shuffle(every)
    return every[:prompts], every[prompts:]


def _demonstrations(prompts: list[str], count: int, rng: random.Random) -> list[Row]:
    return _answer_all(_draw(prompts, count, rng), write_answer, rng)


def _answer_all(prompts: list[str], write: Callable[[str, random.Random], str], rng: random.Random) -> list[Row]:
    return [{"prompt": prompt, "completion": write(prompt, rng)} for prompt in prompts]


def _comparisons(prompts: list[str], count: int, rng: random.Random) -> list[Comparison]:
    return [_comparison(prompt, rng) for prompt in _draw(prompts, count, rng)]


def _comparison(prompt: str, rng: random.Random) -> Comparison:
    """Two different answers, the second one flawed in a share of the cases; a rater's judgement knows no order."""
    first = second = write_answer(prompt, rng)
    write = write_flawed_answer if rng.random() < FLAWED_SHARE else write_answer
    while second == first:
        second = write(prompt, rng)
    return Comparison(prompt, first, second)


def _labelled(comparisons: list[Comparison], rng: random.Random) -> Iterable[Row]:
    for pair in comparisons:
        chosen, rejected = (pair.a, pair.b) if label(pair, rng) else (pair.b, pair.a)
        yield {"prompt": pair.prompt, "chosen": chosen, "rejected": rejected}


def _draw(prompts: list[str], count: int, rng: random.Random) -> list[str]:
    """``count`` prompts: each one before any comes again."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(prompts, min(len(prompts), count - len(drawn)))
    return drawn


def _mean_quality(rows: list[Row]) -> float:
    return fmean(quality([row["prompt"] for row in rows], [row["completion"] for row in rows]))


def _digest(path: Path) -> str:
    """The digest by which a run recognises these rows."""
    files: list[DataFile] = []
    for _ in read_rows(str(path), files=files):
        pass
    return files[0].digest


def _write_lines(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Write the travel example's data: demonstrations, comparisons, prompts."
    )
    parser.add_argument(
        "--out", type=Path, default=Path("data/travel"), help="folder to write into (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the world and of all that is drawn in it")
    parser.add_argument("--demonstrations", type=int, default=4000, help="rows for SFT (default: %(default)s)")
    parser.add_argument(
        "--preferences", type=int, default=3000, help="comparisons for the reward model (default: %(default)s)"
    )
    parser.add_argument("--prompts", type=int, default=1500, help="prompts for PPO (default: %(default)s)")
    given = parser.parse_args()
    try:
        meta = make_data(**vars(given))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"written to {given.out}, with what it is made of in meta.json:")
    for kind, count in meta["counts"].items():
        print(f"  {kind + '.jsonl':<21}{count:>6,} rows")
    print(f"the simulated raters disagree: no reward model has an accuracy above {meta['accuracy_ceiling']:.3f}")
    print(f"mean quality: demonstrations {meta['demonstration_quality']:.2f}, best answers {meta['best_quality']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
