"""The translations in `locale/*.po`: as the module that the pack reads, and a plugin's share of it."""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from bundle.pieces import pieces_of
from bundle.reach import Part
from bundle.source import Module, PackagingError, Problem, parse_module

LOCALE = "locale"
TRANSLATIONS = "base.translations"  # the module, below the package

_DOCSTRING = '"""The translations of all sentences. GENERATED from locale/ by scripts/package.py."""'
_ENTRY = re.compile(r'((?:^#.*\n)*)^msgid ((?:".*"\n)+)msgstr ((?:".*"(?:\n|\Z))+)', re.MULTILINE)
_SCRIPT_CALL = re.compile(r'(?<![\w.$])t\(\s*("(?:[^"\\]|\\.)*")')

Tables = Mapping[str, Mapping[str, str]]  # language → English → that language


def translations(root: Path) -> dict[str, dict[str, str]]:
    """All translations below `locale/`, by language.

    Raises:
        PackagingError: a file cannot be read.
    """
    found = {}
    for path in sorted((root / LOCALE).glob("*.po")):
        try:
            found[path.stem.replace("_", "-")] = read_po(path.read_text(encoding="utf-8"))
        except (ValueError, SyntaxError) as error:
            name = path.relative_to(root).as_posix()
            raise PackagingError([Problem(name, 1, f"cannot be read: {error}")]) from error
    return found


def read_po(text: str) -> dict[str, str]:
    """English → translation of a `.po` file, without what is doubtful, obsolete or not translated yet."""
    entries = ((found[1], _literal(found[2]), _literal(found[3])) for found in _ENTRY.finditer(text))
    return {
        english: other
        for comments, english, other in entries
        if english and other and not re.search(r"(?m)^#,.*\bfuzzy\b", comments)
    }


def _literal(quoted: str) -> str:
    return "".join(str(ast.literal_eval(line)) for line in quoted.splitlines())


def module_text(tables: Tables) -> str:
    """The module that holds these translations."""
    rows = [_DOCSTRING, "", "TRANSLATIONS: dict[str, dict[str, str]] = {"]
    for language, table in sorted(tables.items()):
        rows.append(f'    "{language}": {{')
        rows += [f"        {_quoted(english)}: {_quoted(other)}," for english, other in sorted(table.items())]
        rows.append("    },")
    return "\n".join([*rows, "}", ""])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def with_own_translations(parts: Iterable[Part], *, with_valves: bool) -> list[Part]:
    """The parts of a plugin, of whose translations only those are left that the plugin can show.

    Args:
        parts: of the plugin.
        with_valves: it shows titles and texts of its valves itself, as Open WebUI does not know them.
    """
    parts = list(parts)
    nodes = [node for part in parts for piece in part.pieces for node in piece.nodes]
    used = {*sentences(nodes), *(_of_valves(nodes) if with_valves else ())}
    return [_filtered(part, used) if _is_catalogue(part.module) else part for part in parts]


def _is_catalogue(module: Module) -> bool:
    return module.name == f"{module.package}.{TRANSLATIONS}"


def _filtered(part: Part, used: set[str]) -> Part:
    tables = ast.literal_eval(
        next(node.value for node in part.module.tree.body if isinstance(node, ast.AnnAssign) and node.value)
    )
    own = {name: {en: other for en, other in table.items() if en in used} for name, table in tables.items()}
    module = parse_module(part.module.name, part.module.path, module_text(own))
    return replace(part, module=module, pieces=list(pieces_of(module.body)))


def sentences(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """What the code gives to `message`, the pages' scripts in its strings to `t`, and docstrings it shows."""
    for node in (inner for top in nodes for inner in ast.walk(top)):
        match node:
            case ast.Call(func=ast.Name(id="message"), args=[ast.Constant(value=str(english)), *_]):
                yield english
            case ast.Module(body=[ast.Expr(value=ast.Constant(value=str(english))), *_]) if _is_shown(node):
                yield english
            case ast.Constant(value=str(text)):
                yield from in_script(text)


def _is_shown(module: ast.Module) -> bool:
    """Whether a script says its own docstring: `translated(__doc__)`."""
    return any(
        isinstance(node, ast.Call) and ast.unparse(node) == "translated(__doc__)" for node in ast.walk(module)
    )


def _of_valves(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Titles and descriptions of fields, whether they stand there or are a constant's."""
    nodes = list(nodes)
    constants: dict[str, str] = {}

    def text(node: ast.AST) -> str:
        match node:
            case ast.Constant(value=str(found)):
                return found
            case ast.Name(id=name):
                return constants.get(name, "")
            case ast.FormattedValue(value=value):
                return text(value)
            case ast.JoinedStr(values=values):
                return "".join(map(text, values))
        return ""

    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            constants[node.targets[0].id] = text(node.value)
    for node in (inner for top in nodes for inner in ast.walk(top)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Field":
            yield from (text(one.value) for one in node.keywords if one.arg in {"title", "description"})


def in_script(text: str) -> Iterator[str]:
    """What a page's script gives to `t`."""
    return (str(json.loads(found[1])) for found in _SCRIPT_CALL.finditer(text))
