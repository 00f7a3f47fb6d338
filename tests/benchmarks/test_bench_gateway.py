"""The gateway's benchmark runs, and its numbers are those of the requests that it made."""

from __future__ import annotations

import json

import pytest

from benchmarks.gateway import main


@pytest.mark.slow
def test_a_small_run_gives_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--streams", "4", "--tokens", "10", "--interval", "0.02", "--rounds", "2", "--pairs", "20"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["direct_seconds"] > 10 * 0.02
    assert found["gateway_seconds"] > 10 * 0.02
    assert 0.5 < found["ratio_median"] < 5
    assert found["cpu_us_per_token"] > 0
    main(["--clients", "--streams", "4", "--tokens", "20"])
    clients = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(clients) == {"aiohttp_us_per_piece", "httpx_us_per_piece"}
