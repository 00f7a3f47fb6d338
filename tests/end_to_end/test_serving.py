"""A model in production by the commands that users type: a vLLM server that the gateway starts, and a batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from rlhf.config.schema import ScratchConfig
from rlhf.models.scratch import make_scratch
from rlhf.serving.artefact import ServingStage
from rlhf.storage.jsonl import read_lines
from tests.end_to_end.small import RECIPE, ROOT, overrides, rlhf
from tests.launch.serve.live import CLIENT, MODEL, bring, gateway, site, wait_for

TEXTS = ["What is the capital of Australia? Canberra.", "Hello, how are you today?"] * 50
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
ARGUMENTS = ["--max-model-len", "128", "--enforce-eager", "--kv-cache-memory-bytes", "67108864", "--max-num-seqs", "4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    folder.mkdir()
    scratch = ScratchConfig(hidden_size=64, layers=2, heads=2, intermediate_size=128, vocab_size=300, max_length=128)
    make_scratch(scratch, TEXTS, folder, seed=0)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.mark.slow
def test_a_registered_model_is_served_by_vllm_and_leaves_no_process(tmp_path: Path, model: Path) -> None:
    """One minute: only vLLM itself shows that its server takes the folder, the name and the ids that it is given."""
    with site(tmp_path) as here:
        here.registry.register("travel-1", model, who="a test", why="a test")
        bring(here.registry, "travel-1", ServingStage.PRODUCTION)
        engines = {"arguments": ARGUMENTS, "start_seconds": 300}
        with gateway(here, waits=False, engines=engines) as live:
            assert live.get("/ready").status_code == 503
            wait_for(lambda: live.get("/ready").status_code == 200, "vLLM answers", live, seconds=300)
            client: Any = openai.OpenAI(base_url=f"{live.url}/v1", api_key=live.key, max_retries=0)
            asked = [{"role": "user", "content": "Hello"}]
            whole = client.chat.completions.create(
                model=MODEL, messages=asked, max_tokens=8, temperature=0, extra_body={"ignore_eos": True}
            )
            stream = client.chat.completions.create(
                model=MODEL, messages=asked, max_tokens=8, temperature=0, stream=True, extra_body={"ignore_eos": True}
            )
            text = "".join(event.choices[0].delta.content or "" for event in stream)
            assert text == whole.choices[0].message.content
            assert whole.usage.completion_tokens == 8
            too_long = {"model": MODEL, "prompt": "Hello " * 500}
            refused = CLIENT.post(f"{live.url}/v1/completions", headers=live.headers, json=too_long)
            assert refused.status_code == 400
            started = psutil.Process(live.process.pid).children(recursive=True)
            assert len(started) >= 2
            rows = tmp_path / "in.jsonl"
            rows.write_text("".join(json.dumps({"prompt": f"Hello {number}"}) + "\n" for number in range(6)))
        assert psutil.wait_procs(started, timeout=20)[1] == []


@pytest.mark.slow
def test_a_batch_by_a_recipes_model_continues_where_it_ended(tmp_path: Path, model: Path) -> None:
    """Two minutes: engines start twice."""
    settings = [str(RECIPE), *overrides(tmp_path, "batch"), "rollout.engines=2"]
    long = {"messages": [{"role": "user", "content": "a" * 2000}]}
    asked = [{"id": n, "messages": [{"role": "user", "content": f"Hi {n}"}]} for n in range(20)]
    rows = [*asked[:9], long, {"custom_id": "x", "body": {"messages": asked[0]["messages"]}}, {"none": 1}, *asked[9:]]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(out: Path) -> list[str]:
        files = ["--in", str(tmp_path / "in.jsonl"), "--out", str(out), "--block-rows", "2"]
        return ["batch", *settings, "--model", str(model), *files]

    killed, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *command(killed)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: partial.exists() and partial.read_bytes().count(b"\n") >= 6, "three blocks", seconds=300)
    process.kill()
    process.wait()
    written = partial.read_text().splitlines()
    assert 6 <= len(written) < len(rows)
    with partial.open("a") as file:
        file.write('{"row": ')  # what a kill in the middle of a write leaves
    done = rlhf(*command(killed))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = killed.read_text().splitlines()
    assert lines[: len(written)] == written
    out = [json.loads(line) for line in lines]
    assert [row["row"] for row in out if "row" in row] == [*range(1, 11), *range(12, 24)]
    assert sum(bool(row["error"]) for row in out) == 2
    assert out[9]["error"] == "line 10: prompt longer than data.max_prompt_length=48"
    assert out[10]["response"]["body"]["choices"][0]["message"]["role"] == "assistant"
    assert [row["id"] for row in out if row.get("response") and "id" in row and "row" in row] == list(range(20))
    assert "failed, with the reason in their row" in done.stdout
    assert read_lines(tmp_path / "out.jsonl.quarantine.jsonl") == [row for row in out if row["error"]]
    again = rlhf(*command(killed))  # starts no engine
    assert (again.returncode, "is complete: 23 rows" in again.stdout) == (0, True)
