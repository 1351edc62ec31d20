"""`make release`, and the workflows that run it."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from docs import address as page_end
from docs import pages
from package import pack_version, repository
from release import ReleaseError, released_changelog, web_address

ROOT = Path(__file__).parents[2]
VERSION = "99.0.1"
MADE_OF = ("scripts/", "src/", "pyproject.toml", "uv.lock", "CHANGELOG.md", "README.md", "LICENSE")
ADDRESS = "https://git.example.org/acme/pack"
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
    for git in (["init", "-q"], ["remote", "add", "origin", "git@git.example.org:acme/pack.git"]):
        for checkout in checkouts:
            subprocess.run(["git", "-C", str(checkout), *git], check=True)  # noqa: S607 - as above
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
    assert f"author_url: {ADDRESS}\n" in (checkouts[0] / "functions" / "model_alias_filter.py").read_text()
    assert f"<{ADDRESS}>" in (checkouts[0] / "README.md").read_text()
    assert one["NOTES.md"].decode().endswith(f"\n\n{ADDRESS}\n")
    assert f"open_webui_ollama_pack-{VERSION}-py3-none-any.whl" in one
    assert f"version: {VERSION}" in one["thin-functions.json"].decode()
    assert one["NOTES.md"].decode().startswith("- New.\n")
    lines = (line.split("  ") for line in one.pop("SHA256SUMS").decode().splitlines())
    sums = {name: digest for digest, name in lines}
    assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in one.items()}


def test_one_address() -> None:
    """Would catch an address written a second time by hand, which a fork or a move then leaves behind."""
    address = repository(ROOT)
    assert urlsplit(address).hostname
    for page in pages():
        assert page.read_text().endswith(f"\n\n{page_end(page)}"), f"{page}: run `make docs`"
    for plugin in [*ROOT.glob("functions/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("pipelines/*.py")]:
        assert plugin.read_text().split("\n", 4)[3] == f"author_url: {address}"
    listed = subprocess.run(
        ["git", "ls-files", "src", "scripts", "deploy", "docs", "locale", ".github", "*.md", "*.yaml"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    others = {ROOT / name for name in listed.stdout.split()} - set(pages())
    spelled = [path for path in others if path.suffix != ".webp" and address.encode() in path.read_bytes()]
    assert not spelled, "take it from `package.repository`, or say {repository} in a plugin's first lines"


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://github.com/acme/pack.git", "https://github.com/acme/pack"),
        ("https://x-access-token:secret@github.com/acme/pack", "https://github.com/acme/pack"),
        ("git@github.com:acme/pack.git", "https://github.com/acme/pack"),
        ("ssh://git@git.example.org:2222/acme/pack.git", "https://git.example.org/acme/pack"),
        ("https://git.example.org:8443/ai/tools/pack/", "https://git.example.org:8443/ai/tools/pack"),
        ("/srv/git/pack.git", ""),
        ("../pack", ""),
        ("file:///srv/git/pack", ""),
        ("http://127.0.0.1:3000/acme/pack", ""),
        ("", ""),
    ],
)
def test_the_address_of_a_release(remote: str, address: str) -> None:
    """Would catch a release that names a folder, or a token, as where it comes from."""
    assert web_address(remote) == address


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
