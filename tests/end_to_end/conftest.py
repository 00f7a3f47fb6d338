"""The finished pipeline, and its PPO once more with all that can happen to it; several files read them."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.faults import FEW, Run, Survived, patient
from tests.end_to_end.small import Pipeline, make_small_data


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A finished small pipeline: real Ray, DeepSpeed on 2 ranks, vLLM and W&B (offline), by the command users type."""
    folder: Path = tmp_path_factory.mktemp("pipeline")
    make_small_data(folder)
    run = Pipeline(folder=folder)
    done = run.command()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "screen").write_text(done.stdout)
    return run


@pytest.fixture(scope="session")
def resumed(pipeline: Pipeline) -> Survived:
    """The pipeline's PPO from the same models, killed in its second step, and resumed; then actors are lost."""
    pipeline.copy_models("broken")
    (pipeline.folder / "marks").mkdir()
    settings = [*pipeline.settings("broken"), *patient(FEW)]
    killed = Run(pipeline.folder, "broken", settings)
    killed.wait_for(1, "rollout")
    killed.wait_for_checkpoint(1)
    servers = {psutil.Process(member["process"]).ppid() for member in killed.status()["members"].values()}
    assert [psutil.Process(server).ppid() for server in servers] == [killed.process.pid], "the command's own server"
    killed.process.send_signal(signal.SIGKILL)
    assert killed.end() == -signal.SIGKILL
    marks = str(pipeline.folder / "marks")
    run = Run(pipeline.folder, "broken", settings, program="tests.end_to_end.aimed", AIMED=FEW.aimed, AIMED_MARKS=marks)
    return Survived(path=run.path, code=run.end(), hit=(), said=run.said(), faults=FEW)
