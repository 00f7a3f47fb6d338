"""``cluster.yaml``: Ray's own schema takes it, it is closed to strangers, and Ray's provider for tests starts it."""

from __future__ import annotations

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from launch.files import render


def test_ray_accepts_it_and_it_scales() -> None:
    cluster = prepare_config(yaml.safe_load(render("cluster.yaml")))
    validate_config(cluster)
    worker = cluster["available_node_types"]["worker"]
    assert 0 < worker["min_workers"] < worker["max_workers"] == cluster["max_workers"]
    assert cluster["available_node_types"]["head"]["resources"] == {"CPU": 0, "GPU": 0}


def test_ray_would_refuse_a_key_that_is_none() -> None:
    with pytest.raises(ValidationError, match="idle_minutes"):
        validate_config(prepare_config({**yaml.safe_load(render("cluster.yaml")), "idle_minutes": 5}))


def test_nothing_starts_without_the_token() -> None:
    cluster = yaml.safe_load(render("cluster.yaml"))
    starts = [cluster[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker")]
    assert [start.split()[0] for start in starts] == ["~/rlhf/launch/head.sh", "~/rlhf/launch/worker.sh"]
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    assert "dashboard-host" not in " ".join(starts), "head.sh keeps it on 127.0.0.1"
