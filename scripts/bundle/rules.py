"""What the packager refuses, each with a sentence that says what to do instead.

Two reasons for a rule: text that is put end to end must mean the same afterwards,
and Open WebUI's and the Pipelines server's loaders read a file in ways of their own.
"""

import ast
import builtins
import re
from collections.abc import Iterator, Mapping, Sequence

from bundle.source import Module, Problem, docstring_node, is_in

# Folder of plugins → the names that the loader looks for in a file of it.
KINDS = {"functions": ("Pipe", "Filter", "Action", "Event"), "tools": ("Tools",), "pipelines": ("Pipeline",)}

REQUIRED_KEYS = ("title", "author", "version", "license", "description")
WEBUI_VERSION_KEY = "required_open_webui_version"  # required where Open WebUI is what loads the file
OPTIONAL_KEYS = ("author_url", "funding_url", "git_url", "icon_url", "requirements")
VERSION_PLACEHOLDER = "{version}"  # so that pyproject.toml alone holds the version
_REPOSITORY_PLACEHOLDER = "{repository}"  # and the address, in any key

_PLUGIN_ID = re.compile(r"[a-z_][a-z0-9_]*")
# As Open WebUI's `extract_frontmatter` has it: prose of the form `word: …` becomes a key.
_KEY_LINE = re.compile(r"^\s*([a-z_]+):\s*(.*)\s*$", re.IGNORECASE)
# What Open WebUI's `replace_imports` rewrites anywhere in a file (more spaces become one in merged imports).
_REWRITTEN = re.compile(r"from +(?:utils|apps|main|config)")
_REQUIREMENT = re.compile(
    r"[A-Za-z0-9][\w.-]*(?:\[[\w.-]+\])?\s*(?:(?:===?|[!~<>]=|[<>])\s*[\w.*+!-]+)?", re.ASCII
)

Found = Iterator[tuple[int, str]]


def module_problems(module: Module) -> Iterator[Problem]:
    """What is wrong with a module by itself."""
    checks = (
        _imports(module),
        _names(module),
        _fields(module),
        _scripts(module),
        rewritten_lines(module.text),
    )
    for line, message in (found for check in checks for found in check):
        yield Problem(module.path, line, message)


def plugin_problems(kind: str, modules: Sequence[Module]) -> Iterator[Problem]:
    """What is wrong with a plugin: the modules that end up in its file, the entry module last."""
    entry = modules[-1]
    plugin_id = entry.name.rpartition(".")[2]
    if not _PLUGIN_ID.fullmatch(plugin_id):
        message = f"{plugin_id!r} cannot be a plugin's id: use lower-case letters, digits and underscores"
        yield Problem(entry.path, 1, message)
    for line, message in _frontmatter(kind, entry):
        yield Problem(entry.path, line, message)
    yield from _types(kind, modules)


def _imports(module: Module) -> Found:
    top_level = set(module.tree.body)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            if any(is_in(module.package, item.name) for item in node.names):
                package = module.package
                yield (
                    node.lineno,
                    f"write `from {package}.… import Name`: there is no `{package}` where the file will run",
                )
        elif isinstance(node, ast.ImportFrom) and (
            message := _refuse_from(node, module.package, is_top=node in top_level)
        ):
            yield node.lineno, message


def _refuse_from(node: ast.ImportFrom, package: str, *, is_top: bool) -> str:
    if node.level:
        return f"relative import: write `from {package}.… import Name`"
    if node.module == "__future__":
        return (
            "`from __future__` is refused: the Pipelines server does not put a file into sys.modules, and "
            "without that annotations that are strings break dataclasses and pydantic"
        )
    if any(item.name == "*" for item in node.names):
        return "star import: name what you need"
    return _refuse_pack(node, is_top=is_top) if is_in(package, node.module or "") else ""


def _refuse_pack(node: ast.ImportFrom, *, is_top: bool) -> str:
    if not is_top:
        return "import of the pack inside another statement: move it to the top level of the module"
    if renamed := next((item for item in node.names if item.asname), None):
        return f"`{renamed.name} as {renamed.asname}`: use the name as it is, all is one file afterwards"
    return ""


def _names(module: Module) -> Found:
    for name, _, line in module.bound:
        if name.startswith("__") and name.endswith("__"):
            yield line, f"`{name}` means nothing in a generated file: remove it"
        elif hasattr(builtins, name):
            yield line, f"`{name}` hides the builtin from every module in the same file: choose another name"


def _fields(module: Module) -> Found:
    classes = (node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef))
    for field in (statement for node in classes for statement in node.body):
        match field:
            case ast.AnnAssign(annotation=ast.Constant(value=str())):
                yield (
                    field.lineno,
                    "quoted annotation of a field: dataclasses break on it in Pipelines, unquote it",
                )


def _scripts(module: Module) -> Found:
    for node in module.tree.body:
        if isinstance(node, ast.If) and any(
            getattr(part, "id", "") == "__name__" for part in ast.walk(node.test)
        ):
            yield node.lineno, "a plugin is loaded and never run as a script: remove the `__name__` block"


def rewritten_lines(text: str) -> Found:
    """The lines that Open WebUI would rewrite while loading, in comments and strings too."""
    for number, line in enumerate(text.split("\n"), start=1):
        if found := _REWRITTEN.search(line):
            yield number, f"Open WebUI rewrites the text `{found[0]}` wherever it stands: put it differently"


def type_name(kind: str, entry: Module) -> str:
    """The name by which the loader knows the entry module's class; empty when there is none."""
    classes = {node.name for node in entry.tree.body if isinstance(node, ast.ClassDef)}
    return next((name for name in KINDS[kind] if name in classes), "")


def _types(kind: str, modules: Sequence[Module]) -> Iterator[Problem]:
    entry = modules[-1]
    own = type_name(kind, entry)
    if not own:
        yield Problem(
            entry.path, 1, f"defines no class {' or '.join(KINDS[kind])}, which the loader looks for"
        )
    for module in modules:
        for name, target, line in module.bound:
            if name in KINDS[kind] and target != f"{entry.name}.{own}":
                message = (
                    f"`{name}` is a name by which the loader tells what a file is, and one class in the "
                    "entry module may have such a name: rename it, or import the module that it is in"
                )
                yield Problem(module.path, line, message)


def frontmatter_text(entry: Module) -> str:
    """The file's first lines from `\"\"\"` to `\"\"\"`; empty when it does not begin with them."""
    node = docstring_node(entry.tree)
    lines = entry.text.split("\n")[: node.end_lineno] if node else []
    quotes = [number for number, line in enumerate(lines) if '"""' in line]
    is_plain = quotes == [0, len(lines) - 1] and lines[0] == lines[-1] == '"""'
    return "\n".join(lines) if is_plain else ""


def filled_in(text: str, version: str, repository: str) -> str:
    """The frontmatter with the package's version and address."""
    text = text.replace(_REPOSITORY_PLACEHOLDER, repository)
    return re.sub(r"(?m)^([ \t]*version:[ \t]*)\{version\}", rf"\g<1>{version}", text, count=1)


def frontmatter_keys(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, key and value of each line that Open WebUI takes for a key."""
    for number, line in enumerate(text.splitlines(), start=1):
        if found := _KEY_LINE.match(line):
            yield number, found[1], found[2].strip()


def _frontmatter(kind: str, entry: Module) -> Found:
    text = frontmatter_text(entry)
    if not text:
        yield 1, 'the file must begin with its frontmatter: a line `"""`, lines `key: value`, a line `"""`'
        return
    seen: dict[str, str] = {}
    for number, key, value in frontmatter_keys(text):
        yield from ((number, message) for message in _key_problems(key, value, seen))
        seen[key] = value
    for key in (*REQUIRED_KEYS, WEBUI_VERSION_KEY)[: None if kind != "pipelines" else -1]:
        if not seen.get(key):
            yield 1, f"the frontmatter lacks a value for `{key}:`"


def _key_problems(key: str, value: str, seen: Mapping[str, str]) -> Iterator[str]:
    if key not in (*REQUIRED_KEYS, WEBUI_VERSION_KEY, *OPTIONAL_KEYS):
        yield f"`{key}:` becomes a key of the frontmatter, and none is called that: rephrase it"
    if key in seen:
        yield f"`{key}:` stands there twice, and the last one wins: remove one"
    if key == "version" and value != VERSION_PLACEHOLDER:
        yield f"write `version: {VERSION_PLACEHOLDER}`: the packager fills it in from pyproject.toml"
    if key == "requirements":
        yield from map(
            _refuse_requirement, (part.strip() for part in value.split(",") if not _is_requirement(part))
        )


def _is_requirement(part: str) -> bool:
    return bool(_REQUIREMENT.fullmatch(part.strip()))


def _refuse_requirement(part: str) -> str:
    return (
        f"{part!r} is not a requirement by itself, and loaders split the line on commas: "
        "for each package write its name, at most one extra and at most one bound"
    )
