"""What may import what, what an import may do, and that all places tell the same version."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import ollama_pack
from bundle.rules import KINDS, frontmatter_keys

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
MODULES = sorted((SOURCE / "ollama_pack").rglob("*.py"))

# plugins → services → {aliases, routing, cache, speech} → engines → fit → base → errors.
# webui is reached from the first two alone.
BASE = {"engines", "errors", "base", "fit"}
CORE = {"aliases", "budgets", "routing", "cache", "speech"}
MAY_IMPORT = {
    "plugins": CORE | BASE | {"services", "webui"},
    "services": CORE | BASE | {"webui"},
    "webui": BASE,
    **dict.fromkeys(CORE, BASE),
    "engines": {"errors", "base", "fit"},
    "fit": {"errors", "base"},
    "base": {"errors"},
    "errors": set[str](),
    "__init__": set[str](),
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def part_of(module: str) -> str:
    """The part of the pack that a module is in: `ollama_pack.routing.decide.cost` is in `fleet`."""
    return [*module.split("."), "__init__"][1]


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """Every module that a file imports, and whether it does so when it is itself imported."""
    tree = ast.parse(path.read_bytes())
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    later = {inner for function in functions for inner in ast.walk(function)}
    return [(name, node not in later) for node in ast.walk(tree) for name in imported_by(node)]


def imported_by(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import():
            yield from (item.name for item in node.names)
        case ast.ImportFrom():
            yield node.module or "."


def test_there_is_something_to_look_at() -> None:
    """Would catch a test that holds because it finds no modules."""
    assert {"plugins", "services", "aliases", "webui", "engines", "base", "errors"} <= {
        part_of(name_of(path)) for path in MODULES
    }


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_dependencies_point_one_way(path: Path) -> None:
    """Would catch an import in the wrong direction: a core that knows plugins or Open WebUI."""
    part = part_of(name_of(path))
    assert part in MAY_IMPORT, f"say in MAY_IMPORT where {part!r} stands"
    ours = {part_of(name) for name, _ in imports(path) if name.split(".")[0] == "ollama_pack"}
    assert ours <= MAY_IMPORT[part] | {part}


# A folder of routing/ or engines/ may import itself, those before it in its row, and the modules above both.
FLOORS = (
    ("routing", ("decide", "state", "plan", "probe", "peers", "dispatch")),
    ("engines", ("ollama", "openai")),
)


@pytest.mark.parametrize(("part", "floors"), FLOORS, ids=[part for part, _ in FLOORS])
def test_folders_of_a_part_import_downwards(part: str, floors: tuple[str, ...]) -> None:
    """Would catch a decision that needs a server, or a state that needs a router."""
    upward = []
    for path in (SOURCE / "ollama_pack" / part).rglob("*.py"):
        floor = path.relative_to(SOURCE / "ollama_pack" / part).parts[0]
        own = floors.index(floor) if floor in floors else -1
        for name, _ in imports(path):
            if name.startswith(f"ollama_pack.{part}."):
                other = name.split(".")[2]
                if other in floors and floors.index(other) > own:
                    upward.append((name_of(path), name))
    assert upward == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_open_webui_is_imported_in_functions_of_webui_only(path: Path) -> None:
    """Would catch a module that cannot be imported, tested or packaged without 1.6 GB of server."""
    times = [at_once for name, at_once in imports(path) if name.split(".")[0] == "open_webui"]
    assert not any(times)
    assert not times or part_of(name_of(path)) == "webui"


# Imports everything where there is only the standard library and what the pack may count on.
ALONE = """
import importlib, pkgutil, sys, threading
import aiohttp, orjson, redis.asyncio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # a library in C, which imports itself
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import BaseModel, Field, field_validator  # pydantic imports itself when it is used

there = sys.stdlib_module_names | {name.split(".")[0] for name in sys.modules} | {"ollama_pack"}

class OnlyThese:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] not in there:
            raise ModuleNotFoundError(f"{name} cannot be counted on", name=name)

def refuse(event, args):
    if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn")):
        raise PermissionError(f"an import does {event}{args}")
    if event == "open" and args[1] and set("wax+") & set(args[1]) and "__pycache__" not in str(args[0]):
        raise PermissionError(f"an import writes {args[0]}")

sys.meta_path.insert(0, OnlyThese)
sys.addaudithook(refuse)
import ollama_pack
for module in pkgutil.walk_packages(ollama_pack.__path__, "ollama_pack."):
    importlib.import_module(module.name)
    print(module.name)
assert threading.active_count() == 1, threading.enumerate()
"""


def test_importing_does_nothing_and_needs_little() -> None:
    """Would catch an import that connects, writes a file, starts a thread or needs another package."""
    run = [sys.executable, "-c", ALONE]
    done = subprocess.run(
        run, env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = {name for name in map(name_of, MODULES) if not name.endswith("__init__")}
    assert found <= set(done.stdout.split())


def test_the_family_of_errors_is_drawn_as_it_is() -> None:
    """An error that the drawing in `ollama_pack` lacks, or has below another parent."""
    drawn: list[tuple[str, str]] = []
    above = [""]
    for row in (ollama_pack.__doc__ or "").splitlines():
        if found := re.match(r"([│├└─ ]*)(\w+Error)\b", row):
            depth = len(found[1]) // 4
            above[depth + 1 :] = [found[2]]
            drawn.append((above[depth], found[2]))
    classes = [
        (ast.unparse(node.bases[0]) if node.name != "PackError" else "", node.name)
        for path in MODULES
        if path.stem in {"errors", "tables"}
        for node in ast.parse(path.read_bytes()).body
        if isinstance(node, ast.ClassDef)
    ]
    assert sorted(drawn) == sorted(classes)


def version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def version_in(plugin: Path) -> str:
    keys = frontmatter_keys(plugin.read_text().split('"""')[1])
    return next(value for _, key, value in keys if key == "version")


def test_generated_files_tell_the_version() -> None:
    """Would catch a release whose plugins call themselves by the version before."""
    files = [path for kind in KINDS for path in (ROOT / kind).glob("*.py")]
    told = {path.name: version_in(path) for path in files}
    assert told
    assert told == dict.fromkeys(told, version())


def test_changelog_begins_with_the_version() -> None:
    """Would catch a release that nobody has described."""
    released = re.findall(r"(?m)^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text())
    assert [entry for entry in released if entry != "Unreleased"][:1] == [version()]
