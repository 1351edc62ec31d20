"""A plugin file on this machine, loaded as the servers load it, so that its errors are seen here first."""

import sys
import traceback
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError

from bundle.rules import frontmatter_keys
from deploy.errors import DeployError
from deploy.shown import HIDDEN, Secrets, message, plain, translated
from ollama_pack.base.translations import TRANSLATIONS
from ollama_pack.services.valves import refusal

AUTHOR = "Open WebUI Ollama Pack"
TYPES = {
    "Pipe": "pipe",
    "Filter": "filter",
    "Action": "action",
    "Event": "event",
    "Tools": "tool",
    "Pipeline": "pipeline",
}
KIND_NAMES = {
    "pipe": message("pipe"),
    "filter": message("filter"),
    "action": message("action"),
    "event": message("event function"),
    "tool": message("tool"),
    "pipeline": message("pipeline"),
    "function": message("function"),
}
KEYS_NEEDED = {"title", "version", "description"}
SHOWN_CHARACTERS = 200  # of a value in a message


@dataclass(frozen=True)
class LocalPlugin:
    """A plugin that loads on this machine.

    Attributes:
        id: the file's name, which is the plugin's id.
        kind: what the server will take it for: filter, pipe, event, tool, pipeline …
        content: the file's text.
        manifest: its frontmatter.
        valves: its Valves class; None when it has none.
        user_valves: its UserValves class, likewise.
    """

    id: str
    kind: str
    content: str
    manifest: dict[str, str]
    valves: type[BaseModel] | None
    user_valves: type[BaseModel] | None = None

    @property
    def name(self) -> str:
        return self.manifest["title"]

    @property
    def noun(self) -> str:
        """What it is, for people."""
        return KIND_NAMES[self.kind]

    @property
    def summary(self) -> str:
        lines = len(self.content.splitlines())
        return message(
            "{name} {version}, {lines} lines", name=self.name, version=self.manifest["version"], lines=lines
        )

    @property
    def secret_valves(self) -> frozenset[str]:
        """The valves that the server shows as passwords."""
        fields = self.valves.model_fields if self.valves else {}
        extras = {name: field.json_schema_extra for name, field in fields.items()}
        return frozenset(
            name
            for name, extra in extras.items()
            if isinstance(extra, dict) and extra.get("input") == {"type": "password"}
        )

    def i18n(self, tables: Mapping[str, Mapping[str, str]] = TRANSLATIONS) -> dict[str, dict[str, str]]:
        """Name, description and valves in other languages, in the form of Open WebUI's `meta.i18n`."""
        english = {"name": self.name, "description": self.manifest["description"]}
        for group, valves in (("valves", self.valves), ("user_valves", self.user_valves)):
            for name, field in (valves.model_fields if valves else {}).items():
                english[f"{group}.{name}.title"] = field.title or ""
                english[f"{group}.{name}.description"] = field.description or ""
        found = {
            language: {key: table[text] for key, text in english.items() if text in table}
            for language, table in tables.items()
        }
        return {language: words for language, words in found.items() if words}

    def accepts(self, values: dict[str, Any]) -> bool:
        """Whether `check_valves` has nothing against them."""
        try:
            self.check_valves(values)
        except DeployError:
            return False
        return True

    def check_valves(self, values: dict[str, Any]) -> None:
        """Validate what will be stored.

        Raises:
            DeployError: naming each valve that the plugin would refuse, its value and the reason.
        """
        if self.valves is None:
            return
        try:
            self.valves(**values)
        except ValidationError as error:
            problems = "; ".join(_problem(one, self.secret_valves) for one in error.errors())
            raise DeployError(
                message(
                    "{plugin}: valves that the plugin refuses: {problems}. Correct them in pack.yaml, or "
                    "where the server keeps them (in Open WebUI: Admin Panel → Functions).",
                    plugin=self.id,
                    problems=problems,
                )
            ) from error


def _problem(error: Any, secret: Collection[str]) -> str:
    """One of pydantic's errors as `valve = value: reason`: the value cut where it is long, no secret."""
    valve = ".".join(map(str, error["loc"]))
    given, secrets = error["input"], Secrets()
    if valve in secret:
        secrets.add(given)
    secrets.add_values(given, valve)
    value = HIDDEN if valve in secret else secrets.mask(repr(given))
    reason = secrets.clean(translated(refusal(error)))
    return f"{plain(valve)} = {plain(value, SHOWN_CHARACTERS)}: {plain(reason, 1000)}"


def load_plugin(path: Path) -> LocalPlugin:
    """Load a plugin file.

    Raises:
        DeployError: it cannot be read, or fails to load: with the plugin's own error and line.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(
            message("{path} cannot be read ({error}): run `make package`", path=path, error=error)
        ) from error
    return plugin_of(path, content)


def plugin_of(path: Path, content: str) -> LocalPlugin:
    """A plugin that has this text.

    Raises:
        DeployError: it fails to load: with its own error and line.
    """
    kind, valves, user_valves = _try_out(path, content)
    frontmatter = content.partition('"""')[2].partition('"""')[0]
    manifest = {key: value for _, key, value in frontmatter_keys(frontmatter)}
    if missing := KEYS_NEEDED - manifest.keys():
        raise DeployError(
            message(
                "{path}:1: the frontmatter lacks {keys}: add it",
                path=path,
                keys=", ".join(sorted(missing)),
            )
        )
    return LocalPlugin(path.stem, kind, content, manifest, valves, user_valves)


def _try_out(path: Path, content: str) -> tuple[str, type[BaseModel] | None, type[BaseModel] | None]:
    """Run the file and make an instance of its class; return its kind, its Valves and its UserValves."""
    module = ModuleType(f"{path.stem}_{uuid.uuid4().hex}")
    sys.modules[module.__name__] = module  # pydantic and dataclasses look their module up
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)  # noqa: S102 - this is how the servers load it
        name = next((name for name in TYPES if hasattr(module, name)), None)
        plugin = getattr(module, name)() if name else None
    except Exception as error:
        raise DeployError(
            message(
                "{path}:{line}: the plugin does not load: {kind}: {error}",
                path=path,
                line=_line(error, path),
                kind=type(error).__name__,
                error=error,
            )
        ) from error
    finally:
        del sys.modules[module.__name__]
    if name is None:
        raise DeployError(
            message(
                "{path}:1: it has none of the classes {names}: is it a plugin?",
                path=path,
                names=", ".join(TYPES),
            )
        )
    return TYPES[name], getattr(plugin, "Valves", None), getattr(plugin, "UserValves", None)


def _line(error: Exception, path: Path) -> int:
    """The line of the plugin that failed, not that of a library which it called."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 1
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return (lines[-1] if lines else None) or 1
