"""A vLLM server that the gateway starts: on 127.0.0.1, in its own process group, ended with the gateway."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rlhf.errors import MachineryError
from rlhf.ports import free_port
from rlhf.process_identity import kill_group
from rlhf.serving.gateway_config import ServedEnginesConfig

QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
SHARED_CORES = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""On CPUs, vLLM would by itself pin the threads of every server to the same cores. Read on CPUs only."""


class EngineProcess:
    """A running server and its guardian."""

    def __init__(self, command: Sequence[str], port: int, log: Path, stop_seconds: float, gpus: Sequence[int]) -> None:
        """Start it, without waiting.

        Raises:
            MachineryError: it cannot be started.
        """
        self.url, self.log, self.gpus, self._stop_seconds = f"http://127.0.0.1:{port}", log, tuple(gpus), stop_seconds
        seen = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))} if gpus else {}
        guarded = [sys.executable, "-m", "launch.serve.guardian", str(stop_seconds), *command]
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    guarded,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    env={**SHARED_CORES, **os.environ, **QUIET, **seen},
                    cwd=Path(__file__).parents[2],
                    start_new_session=True,
                )
        except OSError as error:
            raise MachineryError(f"the server of {log.stem} cannot be started: {error}") from error

    @property
    def is_running(self) -> bool:
        """Whether the server has not ended."""
        return self._process.poll() is None

    async def stop(self) -> None:
        """Stop the server and everything that it started; killed if it takes longer than ``stop_seconds``."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._stop_seconds + 5.0):
                while self.is_running:
                    await asyncio.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        """Kill the server's process group."""
        kill_group(self._process)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)


def start_engine(
    config: ServedEnginesConfig, model: str, version: str, folder: Path, gpus: Sequence[int]
) -> EngineProcess:
    """Start ``vllm serve`` with a folder's model under the public name."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "launch.serve.vllm_server", "--model", str(folder)),
        *("--served-model-name", model, "--host", "127.0.0.1", "--port", str(port)),
        *("--disable-uvicorn-access-log", *config.arguments),
    ]
    log = Path(config.logs) / f"{''.join(c if c.isalnum() or c in '._-' else '_' for c in version)}.log"
    return EngineProcess(command, port, log, config.stop_seconds, gpus)
