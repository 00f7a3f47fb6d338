"""Variables that reach every process of a run, and secrets that reach none."""

from __future__ import annotations

import pytest

from rlhf.environment import forwarded, forwarded_to_job

PASSED = {
    "NCCL_DEBUG": "INFO",
    "NCCL_IB_PKEY": "1",
    "NCCL_SOCKET_IFNAME": "^lo,docker",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "GLOO_SOCKET_IFNAME": "eth1",
    "FI_PROVIDER": "efa",
    "UCX_TLS": "rc",
    "HF_HUB_OFFLINE": "1",
    "HF_ENDPOINT": "https://mirror.example",
    "WANDB_MODE": "offline",
    "WANDB_ENTITY": "team",
}


def test_settings_of_the_network_the_hub_and_wandb_are_passed_on() -> None:
    assert forwarded(PASSED) == forwarded_to_job(PASSED) == PASSED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "hf_x"),
        ("WANDB_API_KEY", "x"),
        ("WANDB_SERVICE", "2-4711-tcp-localhost-40000"),
        ("HF_ENDPOINT", "https://me:word@mirror.example"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("PATH", "/bin"),
        ("MY_NCCL_DEBUG", "INFO"),
    ],
)
def test_secrets_and_everything_else_stay(name: str, value: str) -> None:
    assert forwarded({name: value}) == {}


@pytest.mark.parametrize(("name", "value"), [("HF_HOME", "/data/hf"), ("NCCL_TOPO_FILE", "~/topo.xml")])
def test_a_path_is_no_path_of_another_machine(name: str, value: str) -> None:
    assert forwarded({name: value}) == {name: value}
    assert forwarded_to_job({name: value}) == {}
