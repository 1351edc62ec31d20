"""Taking out everything that the pack made, as steps of a plan; what is an admin's stays.

The functions go before the rows, so that nothing publishes them again. A row of ours into which an admin put
something stays, without the pack's mark.
"""

import shutil
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from bundle.rules import frontmatter_keys
from deploy.client import OpenWebUI, Pipelines
from deploy.errors import DeployError, ServerError
from deploy.microphone import plan_no_microphone
from deploy.pipelines import DIGEST
from deploy.plan import Plan, value_diff
from deploy.plugin import AUTHOR, KIND_NAMES
from deploy.rows import grants_of, readable_grants, release_row, stored_rows
from deploy.shown import message
from deploy.voice import EVENTS, ROUTES, microphone_valves
from ollama_pack.webui.model_rows import MARK, REPLAY, ExistingRow
from ollama_pack.webui.publication import left_when_removed

Json = dict[str, Any]

# What a pipeline of the pack leaves in the folder of its name.
LEFT_IN_FOLDER = ("valves.json", "secret", "ollama_pack_cache.*", "__pycache__/*", "__pycache__")


def plan_removal(plan: Plan, server: OpenWebUI, known: dict[str, set[str]]) -> None:
    """Add the steps that take the pack out of an Open WebUI.

    Args:
        plan: gets the steps.
        server: the deployment.
        known: ids of the pack's plugins, by folder.
    """
    functions = _installed(server, "functions", known["functions"])
    tools = _installed(server, "tools", known["tools"])
    if functions.keys() & {EVENTS, ROUTES}:
        plan_no_microphone(plan, server, microphone_valves(server))
    for name in sorted(functions, key=lambda name: (name != EVENTS, name)):  # first what publishes rows
        _plan_plugin(plan, server, "functions", functions[name])
    for name in sorted(tools):
        _plan_plugin(plan, server, "tools", tools[name])
    is_replay_ours = REPLAY in functions or REPLAY not in server.plugins("functions")
    for row in stored_rows(server).values():
        if row.mark or (row.id == REPLAY and is_replay_ours):
            _plan_row(plan, server, row)


def _installed(server: OpenWebUI, folder: str, known: Collection[str]) -> dict[str, Json]:
    """The pack's plugins that are installed; one of another author that has an id of ours is not."""
    found = (server.plugin(folder, plugin) for plugin in sorted(server.plugins(folder).keys() & known))
    return {plugin["id"]: plugin for plugin in found if _author(plugin) == AUTHOR}


def _author(plugin: Json) -> object:
    return (plugin["meta"].get("manifest") or {}).get("author")


def _plan_plugin(plan: Plan, server: OpenWebUI, folder: str, plugin: Json) -> None:
    manifest = plugin["meta"]["manifest"]
    lines = [
        message(
            "{name} {version}, {lines} lines",
            name=f"- {plugin['name']}",
            version=manifest.get("version", ""),
            lines=len(plugin["content"].splitlines()),
        )
    ]
    if valves := server.valves(folder, plugin["id"]):
        lines.append(f"- valves: {', '.join(sorted(valves))}")
    if folder == "tools":
        lines.append(f"- access: {readable_grants(grants_of(plugin))}")
    path = f"/api/v1/{folder}/id/{plugin['id']}/delete"
    plan.add(
        message("delete {kind} {plugin}", kind=KIND_NAMES[folder.removesuffix("s")], plugin=plugin["id"]),
        lines,
        partial(_delete_if_there, server, path),
    )


def _delete_if_there(server: OpenWebUI, path: str) -> None:
    """Delete what somebody else may have deleted in between."""
    try:
        server.delete(path)
    except ServerError as error:
        if error.status not in {401, 404}:
            raise


def _plan_row(plan: Plan, server: OpenWebUI, row: ExistingRow) -> None:
    """Delete a row, or leave to admins what an admin has put into it."""
    grants = left_when_removed(row)
    if grants is None:
        plan.add(
            message("delete model row {model}", model=row.id),
            [f"- {row.id} (access: {', '.join(readable_grants(row.grants))})"],
            partial(server.post, "/api/v1/models/model/delete", {"id": row.id}),
        )
    elif row.mark or row.grants != grants:
        old = {"access": readable_grants(row.grants), f"meta.{MARK}": row.meta.get(MARK)}
        plan.add(
            message(
                "keep model row {model}, which an admin has changed, without the pack's part of it",
                model=row.id,
            ),
            value_diff(old, {"access": readable_grants(grants)}),
            partial(release_row, server, row.id, grants),
        )


def plan_pipelines_removal(plan: Plan, server: Pipelines, known: Collection[str]) -> None:
    """Add the steps that take the pack out of a Pipelines server.

    Its API deletes the file and leaves the valves, so they are set back first: no password stays on its disk.
    """
    for plugin in sorted(server.installed().keys() & set(known)):
        valves = server.valves(plugin)
        if DIGEST not in valves and plugin != REPLAY:  # that one had no valves in 0.1.0
            continue
        plan.add(
            message("delete pipeline {plugin}", plugin=plugin),
            [f"- valves: {', '.join(sorted(valves))}"],
            partial(_delete_pipeline, server, plugin, has_valves=bool(valves)),
        )


def _delete_pipeline(server: Pipelines, plugin: str, *, has_valves: bool) -> None:
    if plugin in server.installed():
        if has_valves:
            server.post(f"/{plugin}/valves/update", {})
        server.delete("/pipelines/delete", {"id": plugin})


def plan_folder_removal(plan: Plan, folder: Path, server: Pipelines | None, known: Collection[str]) -> None:
    """Add the steps that take the pack out of a folder that a Pipelines server has mounted.

    Raises:
        DeployError: it is no folder.
    """
    if not folder.is_dir():
        raise DeployError(
            message(
                "{folder} is no folder: name the one that the Pipelines server has mounted", folder=folder
            )
        )
    before = len(plan.steps)
    for plugin in sorted(known):
        places = (folder / f"{plugin}.py", folder / "failed" / f"{plugin}.py")
        files = [file for file in places if file.is_file() and _is_packs(file)]
        if not files:
            continue
        within = [path for pattern in LEFT_IN_FOLDER for path in sorted((folder / plugin).glob(pattern))]
        lines = [f"- {path.relative_to(folder)}" for path in (*files, *within)]
        what = message("delete pipeline {plugin} in {folder}", plugin=plugin, folder=folder)
        plan.add(what, lines, partial(_delete_files, files, within, folder / plugin))
    if server and len(plan.steps) > before:
        plan.add(message("reload the Pipelines server"), [], partial(server.post, "/pipelines/reload"))


def _is_packs(file: Path) -> bool:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DeployError(
            message("{file} cannot be read ({reason})", file=file, reason=error.strerror)
        ) from error
    frontmatter = text.partition('"""')[2].partition('"""')[0]
    return ("author", AUTHOR) in {(key, value) for _, key, value in frontmatter_keys(frontmatter)}


def _delete_files(files: list[Path], within: list[Path], own: Path) -> None:
    """Delete files and the folder of a pipeline, where nothing else is in it."""
    try:
        for path in (*files, *within):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if own.is_dir() and not any(own.iterdir()):
            own.rmdir()
    except OSError as error:
        raise DeployError(
            message("{file} cannot be deleted ({reason})", file=error.filename, reason=error.strerror)
        ) from error
