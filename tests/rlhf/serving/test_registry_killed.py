"""Commands that are killed by SIGKILL at any moment and given again: no audit entry is lost, none is doubled."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from rlhf.serving.registry import Registry
from tests.rlhf.serving.test_registry import model

ROUNDS = 30
WORKER = """
import sys
from pathlib import Path
from rlhf.serving.artefact import STEPS
from rlhf.serving.gate_result import GateOutcome, GateResult
from rlhf.serving.registry import Registry

path, first = Path(sys.argv[1]), int(sys.argv[2])
models = sorted((path.parent / "models").iterdir())
commands = []
for folder in models:
    commands.append(("register", folder, None))
    commands += [("promote", folder, stage) for stage in STEPS[1:]]
commands += [("rollback", None, None)] * (len(models) - 1)
with Registry.open_or_create(path) as registry:
    for number, (action, folder, stage) in list(enumerate(commands))[first:]:
        by = {"who": "ann", "why": str(number), "operation": f"operation {number}"}
        if action == "register":
            registry.register(folder.name, folder, **by)
        elif action == "promote":
            digest = registry.artefact(folder.name).digest
            gate = GateResult(outcome=GateOutcome.PASS, for_stage=stage, artefact=digest, digest=f"{number:064x}")
            registry.promote(folder.name, stage, gate, **by)
        else:
            registry.roll_back(**by)
        print(number, flush=True)
print("done", flush=True)
"""


def test_killed_commands_happen_once(tmp_path: Path) -> None:
    for number in range(6):
        model(tmp_path / "models" / f"m{number}", f"weights {number}")
    chance, path, first, kills = random.Random(0), tmp_path / "registry.db", 0, 0
    for _ in range(ROUNDS):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path), str(first)], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert worker.stdout is not None
        is_done = False
        for _ in range(chance.randrange(4) if first < 20 else 100):
            line = worker.stdout.readline().strip()
            if line in ("", "done"):
                is_done = line == "done"
                break
            first = int(line) + 1
        if not is_done:
            time.sleep(chance.random() * (0.4 if chance.random() < 0.2 else 0.01))  # also while it starts
            worker.kill()
            kills += 1
        rest = [line for line in worker.stdout.read().split() if line.isdigit()]
        first = int(rest[-1]) + 1 if rest and chance.random() < 0.5 else first  # the other half is not seen: repeated
        assert worker.wait() in (0, -9)
        if is_done:
            break
    with Registry(path) as registry:
        assert [entry.why for entry in registry.audit()] == [str(number) for number in range(6 * 4 + 5)]
        production = registry.serving().production
        assert production is not None
        assert production.version == "m0"
    assert is_done
    assert kills >= 5
