"""``cluster.yaml``: it satisfies Ray's schema, requires a token, and is started by Ray's provider for tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from launch.files import ROOT, Settings, parse, render
from launch.node_sizes import HEAD_STORE, node_sizes
from rlhf.config.load import load_recipe
from tests.launch.hosts import NETWORK, Host, hosts, why_not

IMPORT = re.compile(r"^\s*(?:import|from) (boto\w*)", re.MULTILINE)


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
    assert [start.split()[1] for start in starts] == ["~/rlhf/launch/head.sh", "~/rlhf/launch/worker.sh"]
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    assert "dashboard-host" not in " ".join(starts), "head.sh keeps it on 127.0.0.1"


def test_the_object_store_is_the_plans() -> None:
    cluster = yaml.safe_load(render("cluster.yaml"))
    planned = node_sizes(load_recipe(ROOT / Settings().recipe), "pipeline", gpus=8, cpus=192).object_store
    sizes = [cluster[f"{kind}_start_ray_commands"][-1].split()[0] for kind in ("head", "worker")]
    assert sizes == [f"OBJECT_STORE_BYTES={HEAD_STORE}", f"OBJECT_STORE_BYTES={planned}"]


def test_the_caller_and_the_head_have_what_rays_provider_imports() -> None:
    """Both of one list, and on the nodes after the environment, which would remove it."""
    setup = yaml.safe_load(render("cluster.yaml"))["setup_commands"]
    installs = "pip install --no-deps -r ~/rlhf/requirements/aws.txt"
    [place] = [index for index, command in enumerate(setup) if installs in command]
    assert place > setup.index("make -C ~/rlhf env ENV=gpu")
    page = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    assert "pip install --no-deps -r requirements/aws.txt" in page
    provider = Path(ray.__file__).parent / "autoscaler/_private/aws"
    imported = {name for file in provider.rglob("*.py") for name in IMPORT.findall(file.read_text(encoding="utf-8"))}
    assert imported == {"boto3", "botocore"}
    pinned = (ROOT / "requirements/aws.txt").read_text(encoding="utf-8").splitlines()
    assert imported <= {line.partition("==")[0] for line in pinned if "==" in line}


def test_another_provider_installs_nothing_of_aws() -> None:
    assert "aws.txt" not in render("cluster.yaml", Settings(provider="fake_multinode", cpus=2))


def test_workers_without_gpus_are_machines_without_gpus() -> None:
    cluster = yaml.safe_load(render("cluster.yaml", parse(["kind=cpu"])))
    worker = cluster["available_node_types"]["worker"]
    assert worker["resources"] == {"CPU": 8, "GPU": 0}
    assert worker["node_config"]["InstanceType"] == "m7i.2xlarge"


ADDRESS = """
for n in 8 9; do
    ip link add net$n type veth peer other$n
    ip link set net$n up; ip link set other$n up
    ip addr add 10.9$n.0.1/24 dev net$n
done
ip route add default via 10.98.0.254
python -m launch.own_address 10.99.0.7
python -m launch.own_address
RLHF_INTERFACE=net9 python -m launch.own_address
"""


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_node_of_several_networks_has_the_address_toward_the_head(tmp_path: Path) -> None:
    with hosts(tmp_path, ["node"]) as made:
        code, said = made["node"].run(["sh", "-ec", ADDRESS])
        assert (code, said.split()) == (0, ["10.99.0.1", "10.98.0.1", "10.99.0.1"]), said
        code, said = made["node"].run(["sh", "-ec", "ip route del default; exec python -m launch.own_address 1.2.3.4"])
        assert code == 3 and "there is no way to 1.2.3.4" in said and "fix:" in said


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Host]:
    """A host set up by the file's commands, except the start commands, for Ray's provider for tests."""
    with hosts(tmp_path, ["head"]) as made:
        home = made["head"].home
        (home / "rlhf").symlink_to(ROOT)
        variant = yaml.safe_load(render("cluster.yaml", Settings(provider="fake_multinode", cpus=2)))
        # `ray up` adds its defaults, which Ray does not ship for this provider.
        whole = {**prepare_config(yaml.safe_load(render("cluster.yaml"))), **variant}
        validate_config(whole)
        (home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(whole))
        code, output = made["head"].run(["ip", "route", "add", "default", "via", f"{NETWORK}.254"])
        assert code == 0, output
        code, output = made["head"].run(["ray", "get-auth-token", "--generate"])
        assert code == 0, output
        yield made["head"]


SCALE = """
import sys, time
import ray
from launch.wait_for_nodes import wait_for_nodes

address, wanted = sys.argv[1], int(sys.argv[2])
wait_for_nodes(address, 2, 200)
ray.util.placement_group([{"GPU": 8}] * wanted)
wait_for_nodes(address, 1 + wanted, 200)
time.sleep(3)
print("gpus", sorted(int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]))
"""


@pytest.mark.slow  # a head and three workers start
@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_its_commands_start_a_head_and_its_workers_and_more_when_asked_for(head: Host) -> None:
    """The command is the file's own; the workers are processes of the same host, of the file's type and number."""
    cluster = yaml.safe_load(render("cluster.yaml"))
    start = cluster["head_start_ray_commands"][-1]
    code, output = head.run(["bash", "-c", start], RAY_FAKE_CLUSTER="1", AUTOSCALER_UPDATE_INTERVAL_S="1")
    assert code == 0, output
    address = f"{head.address}:6379"
    code, output = head.run(["python", "-c", SCALE, address, "3"], seconds=450, RAY_AUTH_MODE="token")
    assert code == 0, output + _monitor(head)
    assert "gpus [0, 8, 8, 8]" in output
    code, output = head.run(
        ["python", "-c", f"import ray; ray.init('{address}')"], RAY_AUTH_TOKEN="a-stranger's", RAY_AUTH_MODE="token"
    )
    assert code != 0
    assert "token" in output.lower()


def _monitor(head: Host) -> str:
    """The last output of Ray's autoscaler."""
    logs = (head.folder / "tmp/ray").glob("session_2*/logs/monitor*")
    return "\n".join(f"--- {log.name}\n{log.read_text()[-4000:]}" for log in logs)
