"""Train, ask and compare all arms: ``python -m examples.travel.compare --seeds 0 1 2 --out docs/comparison.md``.

Finished stages and answers are kept in the folder of ``--runs``: a command that was stopped continues there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from examples.travel.compare import judge
from examples.travel.compare.arms import ARMS, BASE, SECONDS, answer_all, train
from examples.travel.compare.data import Sizes
from examples.travel.compare.page import Circumstances, write_page
from examples.travel.compare.people import RATERS, choose_pairs, collect_votes
from launch.evaluate.comparison import show_report
from rlhf.arms.compare import Compared, compare_arms
from rlhf.arms.spec import load_comparison
from rlhf.errors import RLHFError
from rlhf.storage.jsonl import read_lines, to_line
from rlhf.tracking.console import Console

METRICS = (
    "rougeL", "chrf", "length", "faithfulness", "context_precision", "context_recall", "judge_win_rate", "judge_score",
)  # fmt: skip
GUIDELINE = Path(__file__).parents[1] / "guideline.py"
SCORERS = {name: f"{GUIDELINE}:{name}" for name in ("fact", "quality")}
SMALL = Sizes(corpus=640, repeats=1024, demonstrations=640, comparisons=320, items=20, steps=3)
"""For tests: models that have learned little, each in more updates than its warm-up takes."""


@dataclass(frozen=True, kw_only=True)
class JudgeService:
    """The service that judges."""

    url: str
    model: str
    is_simulated: bool


def join_seeds(root: Path, seeds: Sequence[int]) -> None:
    """Write items, answers and votes of all seeds into one folder, each seed's from its own."""
    (root / "answers").mkdir(parents=True, exist_ok=True)
    folders = [root / f"seed-{seed}" for seed in seeds]
    answers = {arm.name: _joined(f / "answers" / f"{arm.name}.jsonl" for f in folders) for arm in ARMS}
    items = [dict(item) for item in _joined(folder / "data" / "items.jsonl" for folder in folders)]
    shown = next(arm.name for arm in ARMS if arm.has_passages)
    for item, row in zip(items, answers[shown], strict=True):
        item["contexts"] = row["contexts"]
    _write(root / "items.jsonl", items)
    for arm, rows in answers.items():
        _write(root / "answers" / f"{arm}.jsonl", rows)
    texts = {arm: [str(row["response"]) for row in rows] for arm, rows in answers.items()}
    pairs = choose_pairs([str(item["prompt"]) for item in items], texts, seed=seeds[0])
    begin = time.perf_counter()
    given = collect_votes(root / "votes.db", pairs, seed=seeds[0])
    print(f"{given:,} votes of {RATERS} simulated raters: {time.perf_counter() - begin:.0f} s", flush=True)


def _joined(files: Iterator[Path]) -> list[dict[str, object]]:
    return [row for file in files for row in read_lines(file)]


def _write(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.write_text("".join(map(to_line, rows)), encoding="utf-8")


def evaluate(root: Path, judging: JudgeService) -> Compared:
    """Write ``comparison.yaml`` and evaluate it, as ``rlhf evaluate --comparison`` does.

    Raises:
        UserError: the judge or the files cannot be used.
        MachineryError: the judge gave no reply.
    """
    content = {
        "items": "items.jsonl",
        "arms": {arm.name: f"answers/{arm.name}.jsonl" for arm in ARMS},
        "base": BASE,
        "metrics": [*METRICS],
        "scorers": SCORERS,
        "judge": {"url": judging.url, "model": judging.model},
        "votes": "votes.db",
    }
    path = root / "comparison.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    compared = compare_arms(load_comparison(path))
    show_report(Console(sys.stdout), compared.report)
    (root / "report.json").write_text(json.dumps(compared.report.as_json(), indent=2) + "\n", encoding="utf-8")
    return compared


@contextmanager
def _judge(url: str | None, model: str | None) -> Iterator[JudgeService]:
    """Context in which the named judge, or else the simulated one, answers."""
    if url is not None and model is not None:
        yield JudgeService(url=url, model=model, is_simulated=False)
        return
    with judge.serving() as address:
        yield JudgeService(url=address, model=judge.MODEL, is_simulated=True)


def compare(root: Path, seeds: Sequence[int], sizes: Sizes, judging: JudgeService, out: Path) -> Compared:
    """Run everything, and write the page and the figure.

    Raises:
        MachineryError: a command failed.
    """
    minutes = [_run_seed(root / f"seed-{seed}", seed, sizes) for seed in seeds]
    join_seeds(root, seeds)
    compared = evaluate(root, judging)
    items = read_lines(root / "items.jsonl")
    circumstances = Circumstances(
        seeds=tuple(seeds),
        seed_of_item=tuple(item["seed"] for item in items),
        label_of_item=tuple(item["label"] for item in items),
        raters=RATERS,
        judge=judging.model,
        is_judge_simulated=judging.is_simulated,
        minutes=tuple(minutes),
    )
    write_page(compared, circumstances, out)
    print(f"page → {out}")
    return compared


def _run_seed(folder: Path, seed: int, sizes: Sizes) -> float:
    """Train and ask all arms of a seed, unless that is done; returns the minutes of its commands."""
    done = folder / "finished"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        train(folder, seed, sizes)
        answer_all(folder, seed)
        done.touch()
    return sum(float(row["seconds"]) for row in read_lines(folder / SECONDS)) / 60


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compare ways to adapt a model on the travel example's world.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="folder of runs (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, help="page, its figure in images/ beside it (default: comparison.md in --runs)"
    )
    parser.add_argument("--judge-url", help="address up to /v1 of a real judge; default: a simulated one")
    parser.add_argument("--judge-model", help="its model")
    parser.add_argument("--small", action="store_true", help="a few rows and steps of everything, to try the command")
    options = parser.parse_args(arguments)
    if (options.judge_url is None) != (options.judge_model is None):
        parser.error("--judge-url and --judge-model go together")
    try:
        with _judge(options.judge_url, options.judge_model) as judging:
            sizes = SMALL if options.small else Sizes()
            out = options.out or options.runs / "comparison.md"
            compare(options.runs, options.seeds, sizes, judging, out)
    except RLHFError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
