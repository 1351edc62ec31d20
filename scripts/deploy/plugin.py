"""A plugin file on this machine, loaded as the servers load it, so that its errors are seen here first."""

import sys
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError

from bundle.rules import frontmatter_keys
from deploy.errors import DeployError

AUTHOR = "Open WebUI Ollama Pack"
TYPES = {"Pipe": "pipe", "Filter": "filter", "Action": "action", "Event": "event", "Pipeline": "pipeline"}


@dataclass(frozen=True)
class LocalPlugin:
    """A plugin that loads on this machine.

    Attributes:
        id: the file's name, which is the plugin's id.
        kind: what the server will take it for: filter, pipe, event, pipeline …
        content: the file's text.
        manifest: its frontmatter.
        valves: its Valves class; None when it has none.
    """

    id: str
    kind: str
    content: str
    manifest: dict[str, str]
    valves: type[BaseModel] | None

    @property
    def name(self) -> str:
        return self.manifest["title"]

    @property
    def summary(self) -> str:
        lines = len(self.content.splitlines())
        return f"{self.name} {self.manifest['version']}, {lines} lines"

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
            problems = "; ".join(
                f"{'.'.join(map(str, one['loc']))} = {one['input']!r}: {one['msg']}" for one in error.errors()
            )
            raise DeployError(
                f"{self.id}: valves that the plugin refuses: {problems}. "
                "Correct them in pack.yaml, or in Open WebUI under Admin → Functions."
            ) from error


def load_plugin(path: Path) -> LocalPlugin:
    """Load a plugin file.

    Raises:
        DeployError: it cannot be read, or fails to load: with the plugin's own error and line.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DeployError(f"{path} cannot be read ({error.strerror}): run `make package`") from error
    module = ModuleType(f"{path.stem}_{uuid.uuid4().hex}")
    sys.modules[module.__name__] = module  # pydantic and dataclasses look their module up
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)  # noqa: S102 - this is how the servers load it
        kind = next(kind for kind in TYPES if hasattr(module, kind))
        getattr(module, kind)()
    except StopIteration as error:
        raise DeployError(f"{path} has none of the classes {', '.join(TYPES)}: is it a plugin?") from error
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1].lineno
        raise DeployError(
            f"{path}:{where}: the plugin does not load: {type(error).__name__}: {error}"
        ) from error
    finally:
        del sys.modules[module.__name__]
    valves = getattr(getattr(module, kind), "Valves", None)
    frontmatter = content.split('"""', 2)[1]
    manifest = {key: value for _, key, value in frontmatter_keys(frontmatter)}
    return LocalPlugin(path.stem, TYPES[kind], content, manifest, valves)
