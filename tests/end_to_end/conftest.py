"""The finished pipeline, which several files read."""

from __future__ import annotations

from pathlib import Path

import pytest

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
