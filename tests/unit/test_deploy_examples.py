"""What is in `deploy/`, against published schemas and against itself, and run as far as this machine can."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy.config import PackConfig, load_config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose"
KUBERNETES = DEPLOY / "kubernetes" / "ollama-pack.yaml"
UNIT = DEPLOY / "gpu-agent.service"
ALL = {
    "Dockerfile",
    "compose/compose.pipelines.yaml",
    "compose/compose.yaml",
    "compose/pack.yaml",
    "gpu-agent.service",
    "grafana/ollama-pack.json",
    "kubernetes/ollama-pack.yaml",
    "prometheus.yml",
}


def test_nothing_is_there_that_nothing_checks() -> None:
    """Would catch a file that is added to deploy/ without a test: this file and test_metrics.py have them."""
    assert {path.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("*") if path.is_file()} == ALL


def test_compose_files_are_of_the_specification_s_form() -> None:
    """Would catch a key that Compose does not know. Its own loader reads both files together in CI."""
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    files = sorted(COMPOSE.glob("compose*.yaml"))
    assert len(files) == 2
    done = subprocess.run([*check, *files], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def hosts(config: PackConfig) -> set[str]:
    """The names of all hosts that a pack.yaml names."""
    urls = [node.url for node in config.nodes] + [node.agent for node in config.nodes if node.agent]
    urls += [config.router.redis_url] if config.router and config.router.redis_url else []
    urls += [config.cache.url] if config.cache and config.cache.url else []
    return {url.split("://")[1].split("/")[0].split(":")[0] for url in urls}


def test_compose_keeps_what_budgets_count(tmp_path: Path) -> None:
    """Would catch budgets that begin anew because the cache needed the room, or after a restart of Redis."""
    compose = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    path = tmp_path / "pack.yaml"
    path.write_text((COMPOSE / "pack.yaml").read_text() + "budgets: [everyone 9 requests/day]\n")
    url = load_config(path).budget_valves["redis_url"]
    service = compose["services"][url.split("://")[1].split(":")[0]]
    assert not [word for word in service["command"] if "lru" in word or "lfu" in word]
    assert service["command"][-2:] == ["--appendonly", "yes"]
    assert [volume.split(":")[0] in compose["volumes"] for volume in service["volumes"]] == [True]


def test_compose_has_what_its_pack_yaml_names() -> None:
    """Would catch a node, an agent or a Redis that is no service there, and slots that are not the nodes'."""
    services = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    config = load_config(COMPOSE / "pack.yaml")
    assert hosts(config) == {"ollama0", "ollama1", "agent0", "agent1", "redis", "cache"}
    assert hosts(config) <= services.keys()
    for number in "01":
        of_ollama, of_agent = (
            services[name + number]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
            for name in ("ollama", "agent")
        )
        assert of_ollama == of_agent == [number]
    slots = {str(node.slots) for node in config.nodes}
    assert slots == {services["ollama0"]["environment"]["OLLAMA_NUM_PARALLEL"]}


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(KUBERNETES.read_text()))


@pytest.mark.filterwarnings("default")  # the checker's own imports
def test_manifests_are_of_kubernetes_form() -> None:
    """Would catch a field that Kubernetes does not know. Its schemas have no ServiceMonitor: see below."""
    kinds = []
    for manifest in manifests():
        if manifest["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(manifest, "1.34", strict=True)
            kinds.append(manifest["kind"])
    assert kinds == ["ConfigMap", "Job", "DaemonSet", "Service", "Role", "RoleBinding"]


def test_manifests_fit_together(tmp_path: Path) -> None:
    """Would catch a pack.yaml that is refused, or a monitor that finds no service."""
    of_kind: dict[str, list[dict[str, Any]]] = {}
    for manifest in manifests():
        of_kind.setdefault(manifest["kind"], []).append(manifest)
    (tmp_path / "pack.yaml").write_text(of_kind["ConfigMap"][0]["data"]["pack.yaml"])
    assert hosts(load_config(tmp_path / "pack.yaml")) == {"ollama-0", "ollama-1", "redis"}
    (agent,), (service,) = of_kind["DaemonSet"], of_kind["Service"]
    assert service["spec"]["selector"] == agent["spec"]["template"]["metadata"]["labels"]
    monitor, open_webui = of_kind["ServiceMonitor"]
    assert monitor["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert monitor["spec"]["endpoints"] == [{"port": service["spec"]["ports"][0]["name"]}]
    (endpoint,) = open_webui["spec"]["endpoints"]
    assert endpoint["path"] == "/ollama-pack/metrics"


def copied() -> Iterator[str]:
    """What the Dockerfile copies into the image, but for where to."""
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            yield from line.split()[1:-1]


@pytest.mark.parametrize("script", ["gpu_agent.py", "upload.py"])
def test_the_image_has_what_the_scripts_need(tmp_path: Path, script: str) -> None:
    """Would catch a folder that is not copied. The image itself is not built: there is no base image here."""
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, tmp_path / name)
    argv = [sys.executable, str(tmp_path / "scripts" / script), "--version"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_the_unit_is_one_for_systemd(tmp_path: Path) -> None:
    """Would catch a setting that systemd does not know, or one that leaves the agent more than it needs."""
    unit = tmp_path / UNIT.name
    text = UNIT.read_text()
    unit.write_text(text.replace("/opt/open-webui-ollama-pack/.venv/bin/python", sys.executable))
    for check in (["verify"], ["security", "--offline=true", "--threshold=40"]):
        argv = ["systemd-analyze", *check, str(unit)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert UNIT.name not in done.stderr
