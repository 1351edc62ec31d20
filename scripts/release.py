"""Make a release of the pack: its version in every file, and what people download in `dist/release/`.

    make release VERSION=1.2.3

Sets the version in pyproject.toml, uv.lock and the plugin files, and gives the changelog's "Unreleased" that
version and a date. Where the remote `origin` is on the web, its address becomes the project's, in all files.
Then writes `dist/release/`: the lists that the admin page imports, the pipelines as a zip, the wheel
and the lists of plugins that import from it, NOTES.md from the changelog, and SHA256SUMS (`sha256sum -c
SHA256SUMS` where they lie).
Nothing is committed: the last lines say how. Run again on what it made, it gives the same bytes.

Exit status: 0 done, 1 refused, 2 bad usage.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from bundle.source import PackagingError
from package import ROOT, add_version, build, pack_version, repository, write

RELEASE = ROOT / "dist" / "release"
DOWNLOADS = ("functions.json", "tools.json", "thin-functions.json", "thin-tools.json", "pipelines.zip")
WHEEL_DATE = "1577836800"  # 2020-01-01: of all files in the wheel
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_REMOTE = re.compile(
    r"(?:https://(?:[^@/]+@)?|ssh://(?:[^@/]+@)?|[^@/:]+@)(?P<host>[\w.-]+\.[a-z]+)(?P<port>:\d+(?=/))?"
    r"[:/](?P<path>[\w./~-]+?)(?:\.git)?/?"
)
_HEADING = re.compile(r"(?m)^## \[(?P<version>[^\]]+)\](?: - (?P<date>\S+))?\n")


class ReleaseError(Exception):
    """There is no release of this, and why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", metavar="VERSION", help="such as 1.2.3")
    add_version(parser)
    version: str = parser.parse_args(arguments).release
    if not _VERSION.fullmatch(version):
        parser.error(f"{version!r} is no version: write three numbers with dots, such as 1.2.3, without a v")
    try:
        release(version)
    except (ReleaseError, PackagingError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    for path in sorted(RELEASE.iterdir()):
        print(f"dist/release/{path.name}")
    print(
        f'To publish it: git commit -am "Release {version}" && git tag v{version} && '
        f"git push origin HEAD v{version}"
    )
    return 0


def release(version: str) -> None:
    """Write everything; see the top of this file.

    Raises:
        ReleaseError: it is older than the last, or nobody has described it.
        PackagingError: the source breaks a rule.
    """
    changes, notes = released_changelog((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    old = pack_version(ROOT)
    (ROOT / "CHANGELOG.md").write_text(changes, encoding="utf-8")
    _replace("pyproject.toml", f'\nversion = "{old}"\n', f'\nversion = "{version}"\n')
    _replace(
        "uv.lock",
        f'"open-webui-ollama-pack"\nversion = "{old}"\n',
        f'"open-webui-ollama-pack"\nversion = "{version}"\n',
    )
    address = origin_address() or repository(ROOT)
    if address != repository(ROOT):
        _replace("pyproject.toml", f'\nRepository = "{repository(ROOT)}"\n', f'\nRepository = "{address}"\n')
    list(write(ROOT, build(ROOT)))
    _run([sys.executable, "scripts/docs.py"], "the documents were not written")
    shutil.rmtree(RELEASE, ignore_errors=True)
    RELEASE.mkdir(parents=True)
    for name in DOWNLOADS:
        shutil.copyfile(ROOT / "dist" / name, RELEASE / name)
    (RELEASE / "NOTES.md").write_text(f"{notes}\n{address}\n", encoding="utf-8")
    _build_wheel()
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(RELEASE.iterdir())
    ]
    (RELEASE / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


def origin_address() -> str:
    """Where people find what this checkout was cloned from; empty: it is not on the web."""
    argv = ["git", "-C", str(ROOT), "config", "--get", "remote.origin.url"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return web_address(done.stdout.strip())


def web_address(remote: str) -> str:
    """The page of a repository, from the address that git has for it; empty: it has none."""
    found = _REMOTE.fullmatch(remote)
    if not found:
        return ""
    port = found["port"] or "" if remote.startswith("https:") else ""
    return f"https://{found['host']}{port}/{found['path']}"


def released_changelog(text: str, version: str) -> tuple[str, str]:
    """The changelog with this version, and what it says of it.

    A version that has its section already keeps it, and gets a date where it says `unreleased`.

    Raises:
        ReleaseError: a later one is there, or nothing is said of this one.
    """
    headings = list(_HEADING.finditer(text))
    versions = [found["version"] for found in headings]
    if later := [one for one in versions if _VERSION.fullmatch(one) and _numbers(one) > _numbers(version)]:
        raise ReleaseError(f"CHANGELOG.md has {later[0]} already, which is later than {version}")
    today = time.strftime("%Y-%m-%d", time.gmtime())
    if version in versions:
        at = versions.index(version)
        new = headings[at][0].replace("- unreleased\n", f"- {today}\n")
    elif versions[:1] == ["Unreleased"]:
        at = 0
        new = f"## [Unreleased]\n\n## [{version}] - {today}\n"
    else:
        raise ReleaseError("CHANGELOG.md does not begin with a section [Unreleased]: write what is new there")
    end = headings[at + 1].start() if at + 1 < len(headings) else len(text)
    notes = text[headings[at].end() : end].strip()
    if not notes:
        raise ReleaseError(f"CHANGELOG.md says nothing of {version}: write what is new under [Unreleased]")
    return text[: headings[at].start()] + new + text[headings[at].end() :], notes + "\n"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _replace(name: str, old: str, new: str) -> None:
    """Replace what must be there once.

    Raises:
        ReleaseError: it is not.
    """
    text = (ROOT / name).read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise ReleaseError(f"{name} should have {old.strip()!r} once, and has it {text.count(old)} times")
    (ROOT / name).write_text(text.replace(old, new), encoding="utf-8")


def _build_wheel() -> None:
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(RELEASE)]
    _run(argv, "the wheel was not built")


def _run(argv: Sequence[str], fault: str) -> None:
    """Run one of the steps.

    Raises:
        ReleaseError: it failed.
    """
    environment = os.environ | {"SOURCE_DATE_EPOCH": WHEEL_DATE}
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"{fault}: {done.stderr.strip() or done.stdout.strip()}")


if __name__ == "__main__":
    sys.exit(main())
