"""A model from training to production, a bad one and its automatic return, and the round that learns from the users.

    python -m examples.travel.demo

Finished acts are kept in the folder of ``--runs``: a command that was stopped continues there.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from examples.travel.demo import acts
from examples.travel.demo.page import describe_story, write_page
from examples.travel.demo.place import DemoPlace, Result
from examples.travel.demo.sizes import FULL, SMALL
from rlhf.errors import RLHFError

ACTS = (
    ("A model is trained on demonstrations and raters' votes", acts.train),
    ("It goes to production, one gate after the other", acts.release),
    ("A faulty candidate passes the offline gate", acts.pass_offline),
    ("Users meet it, and the gateway withdraws it", acts.return_canary),
    ("Users' thumbs train the next round", acts.learn),
    ("The next round goes to production", acts.release_next),
)


def play(place: DemoPlace) -> list[Result]:
    """All acts that are not finished; returns the results of all.

    Raises:
        MachineryError: a command failed, or the story cannot go on.
    """
    place.root.mkdir(parents=True, exist_ok=True)
    return [place.act(number, title, act) for number, (title, act) in enumerate(ACTS, start=1)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 1 if the next round is not better by its interval."""
    parser = argparse.ArgumentParser(description="From training to production and back, with simulated users.")
    parser.add_argument("--runs", type=Path, default=Path("runs/demo"), help="folder (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="page, its figures in images/ beside it (default: demo.md in --runs)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="little of everything, to try the command")
    options = parser.parse_args(arguments)
    place = DemoPlace(root=options.runs, sizes=SMALL if options.small else FULL, seed=options.seed)
    begin = time.monotonic()
    signal.signal(signal.SIGTERM, _end)
    try:
        results = play(place)
        page = write_page(place, results, options.out or options.runs / "demo.md")
    except RLHFError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    story = describe_story(results)
    print(f"\n{story.text}\n{(time.monotonic() - begin) / 60:.1f} minutes → {page}")
    return 0 if story.is_better else 1


def _end(number: int, _: object) -> None:
    """End as on Ctrl-C: what was started is stopped."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
