"""A cycle whose models are made in no time: the parts of ``launch.cycle.work`` write small files instead.

Everything else is real: projects, votes, comparison, gate, registry, journal. As a program it runs one cycle in
children that are killed by SIGKILL at every line of the journal, and inside every part that makes something:
``python -m tests.launch.cycle.pretend FOLDER``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.cli import main
from launch.cycle import work
from rlhf.config.load import load_recipe
from rlhf.cycle import journal
from rlhf.errors import Waiting
from rlhf.feedback.items import make_item
from rlhf.feedback.records import Answer, Choice, Vote
from rlhf.feedback.settings import ProjectSettings
from rlhf.feedback.store import Store
from rlhf.storage.durable import write_atomically
from rlhf.storage.jsonl import append_line, to_line
from rlhf.tracking.run_folder import RunFolder

ROOT = Path(__file__).parents[3]
PAIRS, ITEMS = 12, 40
GATE = """
for: shadow
kpis:
  preferred: {decided_by: superiority, range: [0, 1], minimum_n: 20}
"""


def point(where: str) -> object:
    """Called wherever a kill would hurt; replaced in children that are killed."""
    return None


def prepare(folder: Path, **cycle: object) -> list[str]:
    """Projects, items and gate; returns the settings of the cycle ``travel``."""
    plain = ProjectSettings(overlap=1, gold_fraction=0.0, repeat_fraction=0.0)
    for name in ("votes.db", "comparisons.db"):
        Store.create(folder / name, plain, seed=0).close()
    (folder / "gate.yaml").write_text(GATE)
    (folder / "items.jsonl").write_text("".join(to_line({"prompt": f"Where is town {i}?"}) for i in range(ITEMS)))
    (folder / "prompts.jsonl").write_text(to_line({"prompt": "Where is hill 1?"}))
    keys = {"items": "items.jsonl", "project": "comparisons.db", "gate": "gate.yaml", "registry": "registry.db"}
    named = {key: str(folder / name) for key, name in keys.items()} | cycle
    return [
        "name=travel",
        f"runs_dir={folder / 'runs'}",
        f"feedback={json.dumps({'project': str(folder / 'votes.db'), 'votes': PAIRS})}",
        f"cycle={json.dumps(named)}",
        f"data.prompts={folder / 'prompts.jsonl'}",
        "reward.ceiling=null",
    ]


def cycle(settings: Sequence[str], *options: str) -> int:
    """Give the command; returns its exit code."""
    return main(["cycle", str(ROOT / "recipes" / "quickstart.yaml"), *settings, *options])


def sample_pairs(recipe: str, settings: Sequence[str], round: str) -> None:
    loaded = load_recipe(recipe, settings)
    _note(loaded.runs_dir, f"sample {round}")
    pair = (Answer(text="Near the sea.", policy=str(loaded.feedback.policy)), Answer(text="Who knows?"))
    point("sample")
    with Store.open(Path(loaded.feedback.project)) as store:
        store.add_items([make_item(f"{round}: where is hill {i}?", pair, round=round) for i in range(PAIRS)])
    point("sample")


def train_stage(recipe: str, settings: Sequence[str], stage: str) -> None:
    loaded = load_recipe(recipe, settings)
    run = RunFolder.create(Path(loaded.runs_dir) / loaded.name, stage, "", stage)
    if run.is_finished(stage):
        return
    _note(loaded.runs_dir, f"{stage} {loaded.name}")
    point(stage)
    append_line(run.metrics, {"step": 1, "time/step": 3600.0})
    with run.writing_model() as model:
        (model / "model.safetensors").write_text(f"{stage} {loaded.name} from {loaded.ppo.policy_init}")
    point(stage)
    run.finish({"score": 0.5})
    point(stage)


def answer_items(recipe: str, settings: Sequence[str], model: Path, items: str, out: Path) -> None:
    """The more rounds a model has behind it, the further it comes."""
    _note(out.parents[2], f"answer {out.parents[1].name} {out.stem}")
    point("answer")
    rows = [json.loads(line) for line in Path(items).read_text().splitlines()]
    text = f"It is {model} miles away."
    write_atomically(out, "".join(to_line({**row, "response": text, "sampling": {}}) for row in rows))
    point("answer")


def _note(folder: Path | str, what: str) -> None:
    """What was made, once for each time that it was begun."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    append_line(place / "made.jsonl", {"what": what})


def vote(project: Path, choose: Callable[[int], Choice] = lambda number: Choice.FIRST_MUCH) -> int:
    """One vote on each item that has none; in comparisons the candidate is the first answer. Returns how many."""
    with Store.open(project) as store:
        store.add_rater("r1")
        voted = {vote.item for vote in store.votes()}
        new = [item for item in store.items() if item.id not in voted]
        votes = [
            Vote(id=f"{item.id}-v", item=item.id, rater="r1", choice=choose(i), seconds=6.0)
            for i, item in enumerate(new)
        ]
        store.import_votes(votes)
    return len(votes)


def finish_round(folder: Path, settings: Sequence[str], choose: Choice = Choice.FIRST_MUCH) -> int:
    """Give the command and vote until the rounds are over; returns its exit code."""
    while (code := cycle(settings)) == Waiting.exit_code:
        assert vote(folder / "votes.db") + vote(folder / "comparisons.db", lambda number: choose)
    return code


def install(setattr: Callable[[object, str, object], object]) -> None:
    """Put the parts in place."""
    for part in (sample_pairs, train_stage, answer_items):
        setattr(work, part.__name__, part)


def run_with_kills(folder: Path) -> int:
    """Run one round in children; each is killed one point later than the one before until a line was added."""
    settings = prepare(folder)
    install(setattr)
    _import_all(folder / "first")
    original = journal.append_line

    def append(path: Path, row: dict[str, object]) -> None:
        point("before a line")
        original(path, row)
        point("after a line")

    journal.append_line = append
    kills, reach, lines = 0, 1, 0
    while True:
        child = os.fork()
        if child == 0:
            _run_child(settings, reach)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == -signal.SIGKILL:
            kills += 1
            ends = sum(e.state is journal.StepState.FINISHED for e in journal.read_journal(_journal(folder)))
            reach, lines = (1, ends) if ends > lines else (reach + 1, lines)
        elif code == Waiting.exit_code:
            if not vote(folder / "votes.db") + vote(folder / "comparisons.db"):
                return code
        else:
            print(kills)
            return code


def _import_all(folder: Path) -> None:
    """Run a cycle here, so that the children need not import what it needs."""
    folder.mkdir()
    settings = prepare(folder)
    while cycle(settings) == Waiting.exit_code:
        vote(folder / "votes.db")
        vote(folder / "comparisons.db")


def _journal(folder: Path) -> Path:
    return folder / "runs" / "travel" / journal.JOURNAL


def _run_child(settings: Sequence[str], reach: int) -> None:
    """Run the command, and kill this process at its point number ``reach``."""
    left = reach

    def kill(where: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    global point
    point = kill
    os._exit(cycle(settings))


if __name__ == "__main__":
    sys.exit(run_with_kills(Path(sys.argv[1])))
