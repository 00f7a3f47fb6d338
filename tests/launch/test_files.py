"""The launchers' files agree with each other and with the rest of the project; some are rendered from templates."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from launch.attempt import REPEAT
from launch.files import (
    ENVIRONMENT,
    FILES,
    NOT_COPIED,
    PACKAGES,
    PORTS,
    ROOT,
    STAYS_HERE,
    TEMPLATES,
    Settings,
    main,
    parse,
    ray_version,
    render,
)
from rlhf.config.load import load_recipe
from rlhf.errors import Stopped, UserError

SCRIPTS = [*(ROOT / "launch").glob("*.sh"), ROOT / "tests/system_packages.sh", ROOT / ".ci/run"]
TOOLS = Path(sys.executable).parent


@pytest.mark.parametrize("file", FILES)
def test_a_file_is_what_is_rendered(file: str) -> None:
    assert (ROOT / file).read_text(encoding="utf-8") == render(file), "python -m launch.files"


def test_every_template_is_rendered() -> None:
    templates = {path for path in TEMPLATES.rglob("*") if path.is_file() and path.suffix != ".jinja"}
    assert {TEMPLATES / file.removeprefix("launch/") for file in FILES} == templates


def test_a_variant_is_printed_with_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch/kubernetes/rayjob.yaml", "name=other", "workers=7"]) == 0
    job = yaml.safe_load(capsys.readouterr().out)
    assert job["metadata"]["name"] == "other"
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 7


@pytest.mark.parametrize("word", ["nodes=3", "gpus=many", "gpus"])
def test_an_unknown_setting_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="is no setting of a cluster"):
        parse([word])


@pytest.mark.parametrize("name", ["my_run", "Ours", "8b", "ours-", "a" * 41, ""])
def test_a_name_that_no_service_can_have_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch/kubernetes/rayjob.yaml", f"name={name}"]) == 2
    advice = re.search(r"fix: for example name=(\S+)", capsys.readouterr().err)
    assert advice is not None
    assert main(["launch/kubernetes/shell.yaml", f"name={advice.group(1)}"]) == 0


def test_on_cpus_the_defaults_are_those_of_a_small_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Its recipe has data of its own, and can be planned on it."""
    assert main(["launch/kubernetes/rayjob.yaml", "kind=cpu"]) == 0
    job = yaml.safe_load(capsys.readouterr().out)
    assert job["spec"]["entrypoint"].endswith("pipeline recipes/quickstart.yaml placement.ray_address=auto")
    [worker] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    [container] = worker["template"]["spec"]["containers"]
    assert container["image"] == "rlhf:cpu"
    assert container["resources"]["limits"] == {"cpu": "7", "memory": "23Gi"}
    assert parse(["kind=cpu", "cpus=4", "image=ours"]).cpus == 4
    assert parse(["image=ours", "kind=cpu"]).image == "ours", "what is given has precedence, in any order"
    with pytest.raises(UserError, match="kind=tpu is no environment"):
        parse(["kind=tpu"])


def test_an_unknown_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["README.md"]) == 2
    assert "cluster.yaml" in capsys.readouterr().err


def test_versions_are_the_pinned_ones() -> None:
    for kind in ("cpu", "gpu"):
        assert f"ray=={ray_version()}" in (ROOT / f"requirements/{kind}.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    command = [TOOLS / "shellcheck", "--external-sources", script]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_hadolint_has_nothing_to_say() -> None:
    file = ROOT / "launch/Containerfile"
    checked = subprocess.run([TOOLS / "hadolint", "--format=json", file], capture_output=True, text=True, check=False)
    assert json.loads(checked.stdout) == []


def test_the_image_is_made_from_what_the_environment_is_made_from() -> None:
    """Files that ``setup_env.sh`` reads are copied first, so that the image has the environment of ``make env``."""
    text = (ROOT / "launch/Containerfile").read_text(encoding="utf-8")
    before = text.partition("RUN launch/setup_env.sh")[0]
    copied = {source for line in re.findall(r"^COPY (.+) \S+$", before, re.MULTILINE) for source in line.split()}
    script = (ROOT / "launch/setup_env.sh").read_text(encoding="utf-8")
    read = re.search(r"made_from\(\) \{.*cat (.*)\| sha256sum", script).group(1)
    assert copied == {"setup.py", "requirements", "launch/setup_env.sh"}
    assert set(re.findall(r"setup\.py|requirements|\$0", read)) == {"setup.py", "requirements", "$0"}


@pytest.mark.parametrize("name", ["head", "worker"])
def test_without_a_token_nothing_starts(name: str, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "VENV": str(TOOLS.parent)}
    script = ROOT / f"launch/{name}.sh"
    done = subprocess.run([script, "127.0.0.1"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no token" in done.stderr
    assert "fix:" in done.stderr


LOCKED = "ulimit -S -l 64; source launch/ray_node.sh; prepare_node none; ulimit -S -l; ulimit -H -l"


def test_a_node_may_lock_as_much_memory_as_it_is_allowed_to() -> None:
    """RDMA does; root may raise the hard limit too."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/", "RAY_AUTH_TOKEN": "t"}
    done = subprocess.run(
        ["bash", "-euc", LOCKED], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    soft, hard = done.stdout.split()
    assert soft == hard != "64"


STORE = """
OBJECT_STORE_BYTES={wanted}
source launch/ray_node.sh; size_object_store; echo "${{store_options[@]}}"
"""


@pytest.mark.parametrize(
    ("wanted", "option"), [("", ""), (10**6, "--object-store-memory=1000000"), (10**18, "--object-store-memory=")]
)
def test_the_object_store_lies_in_the_shared_memory(wanted: int | str, option: str) -> None:
    command = ["bash", "-euc", STORE.format(wanted=wanted)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().startswith(option) and bool(done.stdout.strip()) == bool(option)
    is_less = wanted == 10**18
    assert ("/dev/shm is too small" in done.stderr) == is_less
    if is_less:
        assert 0 < int(done.stdout.partition("=")[2]) <= shutil.disk_usage("/dev/shm").total


@pytest.mark.parametrize("name", ["head", "worker", "slurm"])
def test_every_node_has_the_same_environment(name: str) -> None:
    """Which is that of Kubernetes and of Ray's cluster launcher."""
    assert "ray_node.sh" in (ROOT / f"launch/{name}.sh").read_text(encoding="utf-8")
    printed = ["env", "-i", "bash", "-c", "source launch/ray_node.sh; env"]
    done = subprocess.run(printed, cwd=ROOT, capture_output=True, text=True, check=True)
    assert {f"{variable}={value}" for variable, value in ENVIRONMENT.items()} <= set(done.stdout.splitlines())
    assert ENVIRONMENT["RAY_AUTH_MODE"] == "token"


def test_the_head_listens_where_workers_look_for_it() -> None:
    head, worker, slurm = ((ROOT / f"launch/{name}.sh").read_text() for name in ("head", "worker", "slurm"))
    assert f"--port={PORTS['head']} " in head
    assert f"--dashboard-port={PORTS['dashboard']} --ray-client-server-port={PORTS['client']} " in head
    assert f'--address="$head:{PORTS["head"]}"' in worker
    assert slurm.count(f'"$head:{PORTS["head"]}"') == 2
    assert all('"${store_options[@]}"' in script for script in (head, worker))
    assert "--dashboard-host=127.0.0.1" in head


def test_the_same_is_left_behind_everywhere() -> None:
    """Of ``rsync``, of an image's context, and of a wheelhouse's archive, which has no ``.git`` by another option."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()[1:]
    assert ignored == [*STAYS_HERE, *(f"**/{pattern}" for pattern in NOT_COPIED)]
    archive = (ROOT / "launch/wheelhouse.sh").read_text()
    assert "--exclude-vcs" in archive and f"--exclude=./{{{','.join(STAYS_HERE[1:])}}}" in archive
    assert all(f"--exclude='{pattern}'" in archive for pattern in NOT_COPIED)


def test_the_image_has_the_packages_and_the_environment_of_every_node() -> None:
    """But for the token, which is required where the image is used."""
    image = (ROOT / "launch/Containerfile").read_text()
    assert " ".join(PACKAGES) in image
    missing = [name for name, value in ENVIRONMENT.items() if f" {name}={value}" not in image]
    assert missing == ["RAY_AUTH_MODE"]


def test_slurm_requeues_on_the_code_of_a_run_that_can_be_resumed() -> None:
    script = (ROOT / "launch/slurm.sh").read_text()
    assert re.findall(r"^repeat=(\d+)", script, re.MULTILINE) == [str(REPEAT)] and Stopped.exit_code == REPEAT
    assert "if [[ $code -eq $repeat " in script


def test_the_packages_folder_of_data_code_is_copied_to_nodes() -> None:
    """``data`` and ``runs`` are left out at the top level only, because a package has the same name."""
    cluster = yaml.safe_load(render("cluster.yaml", Settings()))
    assert "/data" in cluster["rsync_exclude"]
    assert "data" not in cluster["rsync_exclude"]
    assert (ROOT / "rlhf/data").is_dir()


PAGE = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
PRINTED = re.findall(r"python -m launch\.files (\S+\.yaml[^|>`\n]*)", PAGE)
SUBMITTED = re.findall(r"^sbatch (?:--\S+ )*launch/slurm\.sh (.*)$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("words", PRINTED)
def test_what_the_page_prints_is_printed(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 0
    assert all(word.partition("=")[2] in capsys.readouterr().out for word in words.split()[1:2])


@pytest.mark.parametrize("words", SUBMITTED)
def test_what_the_page_submits_loads(words: str) -> None:
    stages = ("sft", "reward", "dpo", "ppo", "pipeline")
    recipe, *settings = [word for word in words.split() if word not in stages]
    load_recipe(ROOT / recipe, settings)


def test_the_page_names_every_setting_and_every_file() -> None:
    assert len(PRINTED) == 5 and len(SUBMITTED) == 2
    assert [name for name in asdict(Settings()) if f"`{name}`" not in PAGE and name != "provider"] == []
    shown = ["slurm.sh", "wheelhouse.sh", "Containerfile", *(Path(file).name for file in FILES)]
    assert [name for name in shown if name not in PAGE] == []
