"""The recipe of docs/packaging.md: plugins of another team are built, checked and uploaded."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.upload_target import Target

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "example"
PLUGIN = "house_words_filter"


def package(project: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the packager as the recipe says, in the project."""
    command = [sys.executable, str(ROOT / "scripts" / "package.py"), "--package", "acme_plugins", *options]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The example, copied and built."""
    project = tmp_path / "acme"
    shutil.copytree(EXAMPLE, project)
    assert package(project, "--check").returncode == 1  # nothing is built yet
    built = package(project)
    assert (built.returncode, built.stderr) == (0, "")
    assert package(project, "--check").returncode == 0
    return project


def test_the_example_is_installed(target: Target, project: Path) -> None:
    """Would catch a packager or an uploader that only knows the pack's own plugins."""
    done = target.upload("nonsense: [", "--from", str(project))
    assert (done.returncode, done.stderr) == (0, "")
    function = target.api.plugins("functions")[PLUGIN]
    assert (function["is_active"], function["is_global"]) == (True, True)
    assert function["meta"]["manifest"]["version"] == "1.2.0"
    spec = target.api.get(f"/api/v1/functions/id/{PLUGIN}/valves/spec")
    assert spec["properties"].keys() == {"enabled"}
    assert target.upload("", "--from", str(project)).stdout == "nothing to change\n"

    helper = project / "src/acme_plugins/house_words.py"
    helper.write_text(helper.read_text().replace('"use"}', '"use", "synergy": "help"}'))
    assert f"{PLUGIN}.py (built)" in package(project, "--check").stdout
    package(project)
    shown = target.upload("", "--from", str(project), "--dry-run").stdout
    assert "synergy" in shown
    assert target.upload("", "--from", str(project)).stdout == f"done: update filter {PLUGIN}\n"
    assert target.upload("", "--remove").stdout == "there is nothing to remove\n"  # it is not the pack's
    assert PLUGIN in target.api.plugins("functions")


def test_a_plugin_of_another_author(target: Target, project: Path) -> None:
    """Would catch somebody's function overwritten by another of the same id."""
    content = (project / "functions" / f"{PLUGIN}.py").read_text().replace("author: Acme", "author: Somebody")
    form = {"id": PLUGIN, "name": "Theirs", "content": content, "meta": {"description": ""}}
    target.api.post("/api/v1/functions/create", form)
    done = target.upload("", "--from", str(project))
    assert done.returncode == 1
    assert "is installed already and is not by Acme (its author is 'Somebody')" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--root", "nowhere"), "no pyproject.toml in nowhere"),
        (("--source", ".."), "is not below"),
        (("--package", "acme-plugins"), "a package is called by letters, digits and underscores"),
    ],
)
def test_usage(project: Path, options: tuple[str, ...], said: str) -> None:
    """Would catch a mistyped option that builds nothing and says that all is well."""
    done = package(project, *options)
    assert done.returncode == 2
    assert said in done.stderr


def test_folder_without_plugins(target: Target, tmp_path: Path) -> None:
    """Would catch an upload of nothing that counts as done."""
    done = target.upload("", "--from", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no plugin in its functions, tools or pipelines" in done.stderr
