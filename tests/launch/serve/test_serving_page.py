"""The page about serving: its table is that of the schema, its file loads, and its curl commands do what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.serve.app import ROUTES
from rlhf.feedback.store import Store
from rlhf.serving.artefact import ServingStage
from rlhf.serving.gateway_config import load_gateway
from rlhf.serving.gateway_reference import PAGE, with_table
from tests.launch.serve.live import ROOT, LiveGateway, bring, gateway, site

TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    with site(tmp_path_factory.mktemp("page")) as here:
        here.stub("one")
        bring(here.registry, "one", ServingStage.PRODUCTION)
        Store.create(here.folder / "votes.db").close()
        with gateway(here, thumbs={"project": "votes.db"}) as running:
            yield running


def curls() -> list[str]:
    """The commands, each on one line."""
    return re.findall(r"^curl .*$", TEXT.replace("\\\n", ""), flags=re.MULTILINE)


def test_the_table_of_keys_is_that_of_the_schema() -> None:
    assert with_table(TEXT) == TEXT, "run python -m rlhf.serving.gateway_reference"
    assert not re.findall(r"\|  \|$", TEXT, flags=re.MULTILINE)  # every key has a meaning


def test_the_example_loads_and_names_its_files_beside_the_project() -> None:
    config = load_gateway(ROOT / "examples/travel/gateway.yaml")
    assert Path(config.registry).resolve() == ROOT / "registry.db"


def test_every_route_and_every_metric_is_on_the_page(live: LiveGateway) -> None:
    assert [path for path in ROUTES if path not in TEXT] == []
    names = set(
        re.findall(r"^# TYPE (\w+) (?:counter|gauge|histogram)$", live.get("/metrics").text, flags=re.MULTILINE)
    )
    assert len(names) > 10
    assert {name for name in names if f"`{name}`" not in TEXT} == set()


def test_the_curl_commands_work(live: LiveGateway) -> None:
    commands = [command for command in curls() if "/kpis" not in command]  # there is no candidate here
    environment = {**os.environ, "KEY": live.key, "ID": "none"}
    answers = {}
    for command in commands:
        own = command.replace("http://127.0.0.1:8460", live.url)
        done = subprocess.run(
            ["bash", "-c", own], env=environment, capture_output=True, text=True, check=True, timeout=30
        )
        path = re.search(r"8460(/\S*)", command)
        assert path is not None
        answers[path[1]] = done.stdout
        if "chat" in path[1]:
            environment["ID"] = json.loads(done.stdout)["id"]
    assert set(answers) == {
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/feedback",
        "/ready",
        "/metrics",
    }
    assert json.loads(answers["/v1/models"])["data"][0]["id"] == "travel"
    assert answers["/v1/completions"].endswith("data: [DONE]\n\n")
    assert json.loads(answers["/feedback"]) == {"stored": True}
    assert json.loads(answers["/ready"])["production"] == "one"
