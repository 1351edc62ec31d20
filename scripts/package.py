"""Build the plugin files that Open WebUI and the Pipelines server load, and `dist/`.

    uv run scripts/package.py [--check] [--root DIR] [--source DIR] [--package NAME]

`src/ollama_pack/plugins/<kind>/<id>.py` and the modules of the pack that it imports become `<kind>/<id>.py`,
one self-contained file; these are committed. `dist/` gets the lists that the admin page imports, the
pipelines as a zip, and checksums (`sha256sum -c dist/SHA256SUMS`, from the repository's root). The plugins in
`dist/thin-*.json` are for servers that have the package's wheel: they import their class from it. What is
written depends on the source alone, to the byte. With `--check` nothing is written, and a committed file that
is not what the source gives is shown as a diff.

Exit status: 0 done or up to date, 1 refused or stale, 2 bad usage.
"""

import argparse
import hashlib
import io
import json
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import unified_diff
from functools import cache
from pathlib import Path
from typing import Any

from bundle.build import BY, GENERATED, Builder, Plugin
from bundle.rules import KINDS
from bundle.source import PACK, SOURCE, PackagingError, Problem
from bundle.words import LOCALE, TRANSLATIONS, module_text, translations
from deploy.plugin import AUTHOR, plugin_of
from deploy.shown import message, print_anywhere, translated

ROOT = Path(__file__).resolve().parents[1]
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold
REGULAR_FILE = 0o100644


def build(root: Path, source: str = SOURCE, package: str = PACK) -> tuple[Plugin, ...]:
    """Build every plugin of the package in the folder `source` below `root`, writing nothing.

    Raises:
        PackagingError: the source breaks a rule of `bundle.rules`.
    """
    return Builder(root, pack_version(root), source, package, repository(root)).plugins()


def pack_version(root: Path) -> str:
    """The version that pyproject.toml gives to the whole pack.

    Raises:
        PackagingError: it gives none.
    """
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
        return str(project["project"]["version"])
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise PackagingError(
            [Problem("pyproject.toml", 1, message("gives no project.version: {error}", error=error))]
        ) from error


def repository(root: Path) -> str:
    """The address that pyproject.toml gives as the project's; empty: none."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    return str(project.get("urls", {}).get("Repository", "")).rstrip("/")


def add_version(parser: argparse.ArgumentParser) -> None:
    """Give a script the option `--version`, which says the pack's."""
    version, about = f"%(prog)s {pack_version(ROOT)}", message("show the version and end")
    parser.add_argument("--version", action="version", version=version, help=about)


def command_line(about: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a script whose `--help` and errors are in the language of who runs it.

    From here on the script may print whatever the encoding of its output is.

    Args:
        about: what the script does.
        epilog: what comes last.
    """
    print_anywhere()
    vars(argparse)["_"] = translated  # else it asks gettext, which has no catalogue
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, formatter_class=form, epilog=epilog)
    add_version(parser)
    return parser


def outputs(plugins: Iterable[Plugin]) -> dict[str, bytes]:
    """Every file that the packager writes, by its path below the root."""
    plugins = tuple(plugins)
    files = {plugin.path: plugin.text.encode() for plugin in plugins}
    functions, tools, pipelines = (
        [plugin for plugin in plugins if plugin.kind == kind] for kind in ("functions", "tools", "pipelines")
    )
    for prefix, thin in (("", False), ("thin-", True)):
        files[f"dist/{prefix}functions.json"] = _json([_function(plugin, thin=thin) for plugin in functions])
        files[f"dist/{prefix}tools.json"] = _json([_item(plugin, thin=thin) for plugin in tools])
    files["dist/pipelines.zip"] = _zip({f"{plugin.id}.py": plugin.text for plugin in pipelines})
    sums = (f"{hashlib.sha256(content).hexdigest()}  {path}\n" for path, content in sorted(files.items()))
    files["dist/SHA256SUMS"] = "".join(sums).encode()
    return files


def _item(plugin: Plugin, *, thin: bool) -> dict[str, Any]:
    """What the admin page posts for each item of an imported list; the server reads no more than this."""
    manifest = {
        key: value for key, value in plugin.frontmatter.items() if not (thin and key == "requirements")
    }
    content = plugin.thin if thin else plugin.text
    meta = {"description": manifest["description"], "manifest": manifest}
    if manifest.get("author") == AUTHOR:
        meta["i18n"] = _i18n(plugin.path, plugin.text)
    return {"id": plugin.id, "name": manifest["title"], "content": content, "meta": meta}


@cache
def _i18n(path: str, text: str) -> dict[str, dict[str, str]]:
    """The words of one of the pack's plugins in other languages, as Open WebUI's pages read them."""
    return plugin_of(Path(path), text).i18n(translations(ROOT))


def _function(plugin: Plugin, *, thin: bool) -> dict[str, Any]:
    """As the admin page exports it, less what only a server knows. An import creates it switched off."""
    return _item(plugin, thin=thin) | {"type": plugin.type, "is_active": False, "is_global": False}


def _json(items: list[dict[str, Any]]) -> bytes:
    return (json.dumps(items, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode()


def _zip(files: Mapping[str, str]) -> bytes:
    """An archive with fixed dates and permissions, uncompressed: what zlib gives depends on its version."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, text in sorted(files.items()):
            entry = zipfile.ZipInfo(name, ZIP_DATE)
            entry.create_system = 3  # Unix, wherever this runs: it gives the permissions their meaning
            entry.external_attr = REGULAR_FILE << 16
            archive.writestr(entry, text)
    return buffer.getvalue()


def is_generated(path: Path) -> bool:
    """Whether the packager wrote the file."""
    lines = path.read_bytes().splitlines()
    return any(line.startswith(GENERATED.encode()) and BY.encode() in line for line in lines)


def orphans(root: Path, plugins: Iterable[Plugin]) -> list[str]:
    """Generated files whose source is gone."""
    expected = {plugin.path for plugin in plugins}
    found = (path for kind in KINDS for path in sorted((root / kind).glob("*.py")))
    relative = ((path, path.relative_to(root).as_posix()) for path in found)
    return [name for path, name in relative if name not in expected and is_generated(path)]


def differences(root: Path, plugins: Sequence[Plugin]) -> Iterator[str]:
    """For each committed file that is not what the source gives: a diff, or a sentence."""
    for plugin in plugins:
        path = root / plugin.path
        committed = path.read_bytes() if path.exists() else b""
        if committed != plugin.text.encode():
            old = committed.decode(errors="replace").splitlines(keepends=True)
            origin = plugin.path if path.exists() else "/dev/null"
            yield "".join(
                unified_diff(old, plugin.text.splitlines(keepends=True), origin, f"{plugin.path} (built)")
            )
    for name in orphans(root, plugins):
        yield f"{name}: generated, but its source is gone\n"


def write(root: Path, plugins: Sequence[Plugin]) -> Iterator[str]:
    """Write what differs and remove orphans; yields a line for each file that changed.

    Raises:
        PackagingError: a file in the way was not generated.
    """
    external = [
        plugin.path
        for plugin in plugins
        if (root / plugin.path).exists() and not is_generated(root / plugin.path)
    ]
    if external:
        reason = "not a generated file, and in the way of one: move it elsewhere or delete it"
        raise PackagingError(Problem(path, 1, reason) for path in external)
    for name, content in outputs(plugins).items():
        path = root / name
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            yield message("wrote {name}", name=name)
    for name in orphans(root, plugins):
        (root / name).unlink()
        yield message("removed {name}", name=name)


def compile_words(root: Path, dictionary: Path, *, write: bool) -> Iterator[str]:
    """Bring the module with the translations up to date with `locale/`; a line when it was not.

    Raises:
        PackagingError: a file of `locale/` cannot be read.
    """
    text = module_text(translations(root))
    if not dictionary.exists() or dictionary.read_text(encoding="utf-8") != text:
        name = dictionary.relative_to(root.resolve()).as_posix()
        if write:
            dictionary.write_text(text, encoding="utf-8")
        yield message("wrote {name}", name=name) if write else f"{name}: not what {LOCALE}/ says\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = command_line(message("Build the plugin files and dist/."))
    parser.add_argument(
        "--check",
        action="store_true",
        help=message("write nothing; exit 1 when a committed file is stale"),
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help=message(
            "folder with pyproject.toml, into which is written; default: this repository; with --source or "
            "--package the current folder"
        ),
    )
    parser.add_argument(
        "--source",
        type=Path,
        metavar="DIR",
        help=message("folder that the package is in; default: {folder}", folder=SOURCE),
    )
    parser.add_argument(
        "--package",
        metavar="NAME",
        default=PACK,
        help=message("package with the plugins; default: {package}", package=PACK),
    )
    options = parser.parse_args(arguments)
    is_ours = options.source is None and options.package == PACK
    root: Path = options.root or (ROOT if is_ours else Path.cwd())
    if not options.package.isidentifier():
        parser.error(f"--package {options.package}: a package is called by letters, digits and underscores")
    source = (root / (options.source or SOURCE)).resolve()
    if not source.is_relative_to(root.resolve()):
        parser.error(f"--source {options.source} is not below {root}: give the folder above both as --root")
    if not (root / "pyproject.toml").is_file():
        parser.error(f"no pyproject.toml in {root}: --root must be the top folder of a project")
    try:
        dictionary = source / options.package / f"{TRANSLATIONS.replace('.', '/')}.py"
        words: list[str] = []
        if (root / LOCALE).is_dir():
            words = list(compile_words(root, dictionary, write=not options.check))
        plugins = build(root, source.relative_to(root.resolve()).as_posix(), options.package)
        stale = words + list(differences(root, plugins)) if options.check else []
        changed = [] if options.check else words + list(write(root, plugins))
    except PackagingError as error:
        print(error, file=sys.stderr)
        return 1
    for line in changed:
        print(line)
    if stale:
        print("".join(stale))
        print(message("Stale: run `uv run scripts/package.py` and commit what it writes."))
        return 1
    if options.check or not changed:
        print(message("{count} plugin files are up to date.", count=len(plugins)))
    else:
        print(message("{count} plugin files are built.", count=len(plugins)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
