"""`make release`, and the workflows that run it."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from package import pack_version
from release import ReleaseError, released_changelog

ROOT = Path(__file__).parents[2]
VERSION = "99.0.1"
MADE_OF = ("scripts/", "src/", "pyproject.toml", "uv.lock", "CHANGELOG.md", "README.md", "LICENSE")
PLUGIN = "functions/model_alias_filter.py"


def scratch_checkout(folder: Path) -> Path:
    """What of this checkout a release is made of, with one plugin: all of them would take long."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"],  # noqa: S607 - the developer's own git
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        is_other_plugin = "/plugins/" in name and not name.endswith((PLUGIN, "__init__.py"))
        if name.startswith(MADE_OF) and not is_other_plugin and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def test_a_release(tmp_path: Path) -> None:
    """Would catch checksums that fail in a download folder, an old version, or other bytes each time."""
    checkouts = [scratch_checkout(tmp_path / name) for name in ("one", "other")]
    for checkout in checkouts:
        changelog = checkout / "CHANGELOG.md"
        changelog.write_text(
            changelog.read_text().replace("## [Unreleased]\n", "## [Unreleased]\n\n- New.\n", 1)
        )
    running = [
        subprocess.Popen(
            [sys.executable, checkout / "scripts" / "release.py", VERSION], stdout=subprocess.PIPE, text=True
        )
        for checkout in checkouts
    ]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert f"git tag v{VERSION}" in said[0]
    one, other = (
        {path.name: path.read_bytes() for path in (checkout / "dist" / "release").iterdir()}
        for checkout in checkouts
    )
    assert one == other
    assert pack_version(checkouts[0]) == VERSION
    assert f"version: {VERSION}" in (checkouts[0] / "functions" / "model_alias_filter.py").read_text()
    assert f"open_webui_ollama_pack-{VERSION}-py3-none-any.whl" in one
    assert f"version: {VERSION}" in one["thin-functions.json"].decode()
    assert one["NOTES.md"].decode().startswith("- New.\n")
    lines = (line.split("  ") for line in one.pop("SHA256SUMS").decode().splitlines())
    sums = {name: digest for digest, name in lines}
    assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in one.items()}


def test_the_changelog_gets_the_version() -> None:
    """Would catch notes of another version, or what is new left under "Unreleased"."""
    old = "# Changelog\n\n## [Unreleased]\n\n- New.\n\n## [1.0.0] - unreleased\n\n- First.\n"
    new, notes = released_changelog(old, "1.1.0")
    assert notes == "- New.\n"
    assert "## [Unreleased]\n\n## [1.1.0] - 2" in new
    assert released_changelog(new, "1.1.0") == (new, notes)  # made already
    dated, notes = released_changelog(old, "1.0.0")
    assert notes == "- First.\n"
    assert "- New." in dated
    assert "unreleased\n" not in dated
    with pytest.raises(ReleaseError, match=r"later than 0\.9\.0"):
        released_changelog(old, "0.9.0")
    with pytest.raises(ReleaseError, match=r"says nothing of 1\.2\.0"):
        released_changelog(new, "1.2.0")


def test_the_workflows_are_of_github_s_form() -> None:
    """Would catch a key that GitHub does not know. actionlint reads scripts and expressions, in CI."""
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert [path.name for path in workflows] == ["checks.yml", "release.yml", "site.yml"]
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*check, *workflows], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
