"""Plugins in the folder that a Pipelines server has mounted, as steps of a plan.

The server reads the folder when it starts, and when it is told to reload.
"""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.client import Pipelines
from deploy.errors import DeployError
from deploy.pipelines import DIGEST, require_loaded
from deploy.plan import Plan, valves_diff
from deploy.plugin import LocalPlugin
from deploy.shown import message

Json = dict[str, Any]


def plan_folder(plan: Plan, folder: Path, plugin: LocalPlugin, wanted: Json) -> None:
    """Add the steps that put a pipeline and its valves into the folder.

    Raises:
        DeployError: the folder or what is in it cannot be read, or a valve would be refused.
    """
    if not folder.is_dir():
        raise DeployError(
            message(
                "{folder} is no folder: name the one that the Pipelines server has mounted", folder=folder
            )
        )
    target = _Mounted(folder, plugin)
    stored = target.valves()
    plugin.check_valves(stored | wanted)
    if stored | wanted != stored:  # first: code that refuses stored valves would end the server's loading
        plan.add(
            message("set valves of pipeline {plugin} in {folder}", plugin=plugin.id, folder=folder),
            valves_diff(stored, stored | wanted, plugin.secret_valves),
            lambda: write_whole(target.valves_file, json.dumps(stored | wanted)),
        )
    if not target.has_code():
        what = message("put pipeline {plugin} into {folder}", plugin=plugin.id, folder=folder)
        plan.add(what, [f"+ {plugin.summary}"], lambda: write_whole(target.file, plugin.content))


def plan_reload(plan: Plan, server: Pipelines | None, plugins: list[LocalPlugin]) -> None:
    """Add the step that makes the server load what is in its folder, where it does not run that already.

    Raises:
        DeployError: the server does not accept the key.
    """
    if server is None:
        return
    if plan.steps or not all(_runs(server, plugin) for plugin in plugins):
        plan.add(message("reload the Pipelines server"), [], lambda: _reload(server, plugins))


def _runs(server: Pipelines, plugin: LocalPlugin) -> bool:
    if plugin.id not in server.installed():
        return False
    digest = str(server.valves(plugin.id).get(DIGEST) or " ")
    return hashlib.sha256(plugin.content.encode()).hexdigest().startswith(digest)


def _reload(server: Pipelines, plugins: list[LocalPlugin]) -> None:
    server.post("/pipelines/reload")
    for plugin in plugins:
        require_loaded(server, plugin)


@dataclass(frozen=True)
class _Mounted:
    folder: Path
    plugin: LocalPlugin

    @property
    def file(self) -> Path:
        return self.folder / f"{self.plugin.id}.py"

    @property
    def valves_file(self) -> Path:
        return self.folder / self.plugin.id / "valves.json"

    def has_code(self) -> bool:
        try:
            return self.file.read_bytes() == self.plugin.content.encode()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise DeployError(
                message("{file} cannot be read ({reason})", file=self.file, reason=error.strerror)
            ) from error

    def valves(self) -> Json:
        try:
            stored = json.loads(self.valves_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise DeployError(
                message(
                    "{valves_file} cannot be read ({error}): mend it or take it away",
                    valves_file=self.valves_file,
                    error=error,
                )
            ) from error
        return stored if isinstance(stored, dict) else {}


def write_whole(file: Path, text: str) -> None:
    """Write a file in one step: a server that loads meanwhile sees the old one or the new one.

    Raises:
        DeployError: it cannot be written.
    """
    try:
        file.parent.mkdir(exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # no .py at the end
        written = Path(name)
        try:
            with os.fdopen(handle, "wb") as out:  # as text, Windows would get other ends of lines
                out.write(text.encode())
            written.chmod(file.stat().st_mode if file.exists() else 0o644)  # the server may be another user
            written.replace(file)
        finally:
            written.unlink(missing_ok=True)
    except OSError as error:
        raise DeployError(
            message(
                "{file} cannot be written ({reason}): may you write there?",
                file=file,
                reason=error.strerror,
            )
        ) from error
