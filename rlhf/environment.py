"""Environment variables that every process of a run gets from the process that starts it."""

from __future__ import annotations

import re
from collections.abc import Mapping

TRANSPORT = ("NCCL_", "TORCH_NCCL_", "GLOO_", "FI_", "UCX_")
"""Beginnings of the names of variables that set up the network between ranks. None of them holds a secret."""
SERVICES = ("HF_", "WANDB_")
"""The same of the Hugging Face hub and of W&B, whose keys are secrets."""
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
"""Names of variables that are never passed on: Ray shows and logs the environment of jobs and actors."""
OWN = ("WANDB_SERVICE", "WANDB__SERVICE")
"""Beginnings of the names of variables with which W&B finds its own helper process: each process has another one."""
CREDENTIALS = re.compile(r"://[^/\s]*@")
"""A user's name and password in an address."""
FILE = re.compile(r"^(?:/|~|\./|\.\./)")


def forwarded(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that actors get: settings of the network, of the hub and of W&B, without secrets."""
    return {name: value for name, value in environment.items() if _is_forwarded(name, value)}


def forwarded_to_job(environment: Mapping[str, str]) -> dict[str, str]:
    """The same for a job on other machines: without paths, which name files of this one."""
    return {name: value for name, value in forwarded(environment).items() if not FILE.match(value)}


def _is_forwarded(name: str, value: str) -> bool:
    if name.startswith(TRANSPORT):
        return True
    return (
        name.startswith(SERVICES)
        and not name.startswith(OWN)
        and not SECRET.search(name)
        and not CREDENTIALS.search(value)
    )
