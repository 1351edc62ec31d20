"""Every committed plugin file, through the loaders that will load it."""

import ast
import gc
import json
import re
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import package
from bundle.rules import KINDS, OPTIONAL_KEYS, REQUIRED_KEYS, WEBUI_VERSION_KEY
from harness.events_target import eventually
from harness.languages import english_in
from loader.conftest import Loaded, Loader
from loader.load_pipeline import SECRET, valves_errors

ROOT = Path(package.__file__).parents[1]
FILES = {kind: sorted((ROOT / kind).glob("*.py")) for kind in KINDS}
FOR_WEBUI = [*FILES["functions"], *FILES["tools"]]
FOR_PIPELINES = FILES["pipelines"]

# As the contract has them.
TYPES = {
    "model_alias_filter": "filter",
    "response_cache_filter": "filter",
    "response_cache_replay": "pipe",
    "gpu_router": "pipe",
    "usage_budgets": "filter",
    "ollama_pack_events": "event",
    "voice_routes": "event",
    "ollama_pack_gateway": "event",
    "voice_transcription": "tools",
}
PIPELINE_TYPES = TYPES | {"gpu_router": "manifold"}
SUPPORTED_SINCE = "0.11.2"

Load = Callable[[str, str, str], Loaded]
LoadPipeline = Callable[..., dict[str, Any]]


def named(path: Path) -> str:
    """A file as it is called in the repository, for the name of a test."""
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> tuple[str, str, str]:
    """What the loader is called with."""
    return path.parent.name, path.stem, path.read_text(encoding="utf-8")


for_webui = pytest.mark.parametrize("path", FOR_WEBUI, ids=named)
for_pipelines = pytest.mark.parametrize("path", FOR_PIPELINES, ids=named)
for_all = pytest.mark.parametrize("path", [*FOR_WEBUI, *FOR_PIPELINES], ids=named)


@for_webui
def test_a_function_that_is_updated_leaves_nothing_in_memory(path: Path, load: Load) -> None:
    """Would catch megabytes that each update leaves behind, as in the caches of `typing`."""
    loaded = load(*read(path))
    plugin = weakref.ref(type(loaded.instance))
    sys.modules.pop(type(loaded.instance).__module__, None)
    del loaded

    def is_gone() -> bool:
        gc.collect()
        return plugin() is None

    eventually(is_gone)  # a thread may still look for the driver of a GPU


def test_there_is_something_to_load() -> None:
    """Tests below that pass because they were given no file."""
    assert FILES["functions"]
    assert FILES["pipelines"]


def test_files_are_what_the_source_gives() -> None:
    """Tests below that pass on yesterday's files, or leave a new plugin out."""
    assert list(package.differences(ROOT, package.build(ROOT))) == []


@for_webui
def test_open_webui_loads_it(path: Path, load: Load, capfd: pytest.CaptureFixture[str]) -> None:
    """A plugin that an admin cannot save, that becomes another type, or that chatters on stdout."""
    loaded = load(*read(path))
    assert loaded.type == TYPES[path.stem]
    assert capfd.readouterr() == ("", "")


@for_webui
def test_frontmatter_is_read_as_meant(path: Path, load: Load) -> None:
    """A version other than the pack's, or a sentence that became a key."""
    frontmatter = load(*read(path)).frontmatter
    assert frontmatter["version"] == package.pack_version(ROOT)
    assert frontmatter[WEBUI_VERSION_KEY] == SUPPORTED_SINCE
    assert set(frontmatter) <= {*REQUIRED_KEYS, WEBUI_VERSION_KEY, *OPTIONAL_KEYS}


@for_all
def test_open_webui_rewrites_nothing(path: Path, webui_loader: Loader) -> None:
    """Text that Open WebUI changes behind the author's back, and saves."""
    text = path.read_text(encoding="utf-8")
    assert webui_loader.plugin.replace_imports(text) == text


@for_webui
@pytest.mark.parametrize("name", ["Valves", "UserValves"])
def test_valves_work_as_they_come(
    name: str, path: Path, load: Load, webui_loader: Loader, capfd: pytest.CaptureFixture[str]
) -> None:
    """Defaults that do not validate, so that the plugin cannot be used; a form that cannot be drawn."""
    valves = getattr(load(*read(path)).instance, name, None)
    if valves is None:
        assert f"class {name}(" not in path.read_text(encoding="utf-8")
        return
    defaults = valves().model_dump()
    assert valves(**json.loads(json.dumps(defaults))).model_dump() == defaults
    schema = webui_loader.plugin.resolve_valves_schema_options(valves, valves.model_json_schema())
    assert set(schema["properties"]) == set(defaults)
    assert all(form.get("description") for form in schema["properties"].values())
    assert capfd.readouterr() == ("", "")


@for_webui
@pytest.mark.parametrize("name", ["Valves", "UserValves"])
def test_valves_that_cannot_be_saved_keep_their_secrets(name: str, path: Path, load: Load) -> None:
    """Passwords and keys in the server's log, where Open WebUI puts the error of a save that failed."""
    valves = getattr(load(*read(path)).instance, name, None)
    said = valves_errors(valves) if valves else []
    assert bool(said) == bool(valves)
    assert [error for error in said if SECRET[:7] in error] == []


@for_webui
def test_loading_leaves_no_trace_of_the_pack(path: Path, load: Load) -> None:
    """A file that works only where the pack is installed: here, and on no server."""
    load(*read(path))
    assert [name for name in sys.modules if name.partition(".")[0] == "ollama_pack"] == []


@for_all
def test_no_import_of_the_pack_is_left(path: Path) -> None:
    """An import of the pack that is reached only when some hook runs."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    modules = [item.name for node in nodes if isinstance(node, ast.Import) for item in node.names]
    modules += [node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)]
    assert [
        module for module in modules if module.partition(".")[0] in {"ollama_pack", "", "__future__"}
    ] == []


@for_all
def test_every_definition_is_used(path: Path) -> None:
    """A definition that nothing in the file leads to from the plugin's class: a module of ballast."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named_in: dict[str, set[str]] = {}  # top-level name → the names in the statements that define it
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        parts = [part for target in targets for part in getattr(target, "elts", [target])]
        for name in (getattr(part, "id", getattr(part, "name", "")) for part in parts):
            named_in.setdefault(name, set()).update(names_in(node))
    todo, reached = [*set(KINDS[path.parent.name]) & named_in.keys(), ""], set[str]()
    while todo:
        reached.add(name := todo.pop())
        todo += (named_in.get(name, set()) & named_in.keys()) - reached
    assert sorted(named_in.keys() - reached) == []


def names_in(node: ast.AST) -> set[str]:
    """The names in a statement, also those in types that are strings, such as `"Buffer[int]"`."""
    texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
    types = [
        text for text in texts if isinstance(text, str) and re.fullmatch(r"[A-Za-z_][\w.\[\], |]*", text)
    ]
    quoted = {name for text in types for name in re.findall(r"\w+", text)}
    return quoted | {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


@for_webui
def test_two_copies_do_not_meet(path: Path, load: Load) -> None:
    """State or classes that two plugins of one server share by accident."""
    kind, plugin_id, text = read(path)
    first, second = load(kind, plugin_id, text), load(kind, f"{plugin_id}_2", text)
    assert first.names is not second.names
    own = [
        name
        for name, value in first.names.items()
        if isinstance(value, type) and value.__module__ == type(first.instance).__module__
    ]
    assert type(first.instance).__name__ in own
    assert [name for name in own if first.names[name] is second.names[name]] == []


def test_two_plugins_with_one_module_do_not_meet(load: Load, tmp_path: Path) -> None:
    """A class or a counter of the pack that two plugins of one process would share."""
    head = '"""\ntitle: T\nauthor: A\nversion: {version}\nlicense: L\ndescription: D\n'
    head += f'{WEBUI_VERSION_KEY}: {SUPPORTED_SINCE}\n"""\n'
    sources = {
        "pyproject.toml": '[project]\nversion = "1.0.0"\n',
        "src/ollama_pack/shared.py": "SEEN: list[str] = []\n\n\nclass Shared:\n    pass\n",
    }
    for name in ("first", "second"):
        text = f"{head}from ollama_pack.shared import SEEN, Shared\n\n\n"
        text += "class Filter:\n    seen = SEEN\n    shared = Shared\n"
        sources[f"src/ollama_pack/plugins/functions/{name}.py"] = text
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    first, second = (load(plugin.kind, plugin.id, plugin.text) for plugin in package.build(tmp_path))
    first.names["SEEN"].append("first")
    assert second.names["SEEN"] == []
    assert first.instance.shared is not second.instance.shared
    assert first.instance.shared.__module__ != second.instance.shared.__module__


def test_lists_are_what_the_server_takes(webui: Callable[[str], ModuleType], load: Load) -> None:
    """A list that the admin page reads and the server then refuses, item by item."""
    forms = {
        "functions": webui("open_webui.models.functions").FunctionForm,
        "tools": webui("open_webui.models.tools").ToolForm,
    }
    built = package.outputs(package.build(ROOT))
    for kind, form in forms.items():
        items = [form(**item) for item in json.loads(built[f"dist/{kind}.json"])]
        assert [item.id for item in items] == [path.stem for path in FILES[kind]]
        for item in items:
            assert load(kind, item.id, item.content).frontmatter == item.meta.manifest


@pytest.mark.parametrize("kind", ["functions", "tools"])
def test_thin_files_do_the_same(kind: str, webui_loader: Loader) -> None:
    """A thin plugin that is another type, has other valves, or brings a copy of the package's code."""
    thin = json.loads(package.outputs(package.build(ROOT))[f"dist/thin-{kind}.json"])
    assert [item["id"] for item in thin] == [path.stem for path in FILES[kind]]
    for item in thin:
        loaded = webui_loader.load(kind, item["id"], item["content"])
        assert loaded.type == TYPES[item["id"]]
        assert loaded.frontmatter == item["meta"]["manifest"]
        assert type(loaded.instance).__module__ == f"ollama_pack.plugins.{kind}.{item['id']}"
        whole = webui_loader.load(
            kind, item["id"], (ROOT / kind / f"{item['id']}.py").read_text("utf-8")
        ).instance
        for name in ("Valves", "UserValves"):
            valves = [getattr(one, name, None) for one in (loaded.instance, whole)]
            ours, theirs = (one and one.model_json_schema() for one in valves)
            assert ours == theirs


@for_pipelines
def test_pipelines_server_loads_it(path: Path, load_pipeline: LoadPipeline) -> None:
    """A file that the server moves to failed/, takes for another type, or that needs the pack installed."""
    answer = load_pipeline(path)
    assert answer["loaded"], answer["printed"]
    assert answer["type"] == PIPELINE_TYPES[path.stem]
    assert answer["frontmatter"]["version"] == package.pack_version(ROOT)
    assert answer["new_modules"] == []
    assert (answer["printed"], answer["errors"]) == ([f"Loaded module: {path.stem}"], "")


@for_pipelines
def test_pipelines_valves_that_cannot_be_saved_keep_their_secrets(
    path: Path, load_pipeline: LoadPipeline
) -> None:
    """Passwords and keys in the server's log, which prints the error of a save that failed."""
    answer = load_pipeline(path)
    assert bool(answer["valves_errors"]) == bool(answer["valves"])
    assert [error for error in answer["valves_errors"] if SECRET[:7] in error] == []


@for_pipelines
def test_pipelines_valves_work_as_they_come(path: Path, load_pipeline: LoadPipeline) -> None:
    """Defaults that do not validate, so that the server does not start."""
    answer = load_pipeline(path)
    assert set(answer["schema"].get("properties", {})) == set(answer["valves"])


@for_pipelines
def test_pipelines_valves_in_chinese(path: Path, load_pipeline: LoadPipeline) -> None:
    """English on the page of a Pipelines server that runs in Chinese: Open WebUI knows no other words."""
    fields = load_pipeline(path, LANG="zh_CN.UTF-8")["schema"].get("properties", {})
    said = {name: f"{field['title']} {field.get('description', '')}" for name, field in fields.items()}
    assert {name: text for name, text in said.items() if english_in(text)} == {}
    assert all(re.search("[一-鿿]", text) for text in said.values())
