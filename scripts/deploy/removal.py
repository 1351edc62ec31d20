"""Taking out everything that the pack made, as steps of a plan; what is an admin's stays.

The functions go before the rows, so that nothing publishes them again. A row of ours into which an admin put
something stays, without the pack's mark. If its grants are those that the pack gave, it is left to admins:
what an admin did to a row does not let in the people whom the pack let in.
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
from deploy.rows import grants_of, has_additions, is_marked, readable_grants
from deploy.shown import message
from deploy.voice import EVENTS, ROUTES, microphone_valves
from ollama_pack.webui.audience import NOBODY, Grants, grant_forms
from ollama_pack.webui.model_rows import MARK
from ollama_pack.webui.publication import is_our_description

Json = dict[str, Any]

REPLAY = "response_cache_replay"  # its row is the events function's, which gives it no mark
REPLAY_META = {"hidden": True, "description": "Gives the answers of the response cache."}
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
    for row in server.model_rows().values():
        if is_marked(row) or (row["id"] == REPLAY and is_replay_ours):
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


def _plan_row(plan: Plan, server: OpenWebUI, row: Json) -> None:
    """Delete a row, or leave to admins what an admin has put into it."""
    model = row["id"]
    given = _given(row)
    is_regranted = given is not None and grants_of(row) != given
    if not (_is_changed(row) or is_regranted):
        lines = [f"- {model} (access: {', '.join(readable_grants(grants_of(row)))})"]
        plan.add(
            message("delete model row {model}", model=model),
            lines,
            partial(server.post, "/api/v1/models/model/delete", {"id": model}),
        )
        return
    grants = grants_of(row) if is_regranted else NOBODY
    old = {"access": readable_grants(grants_of(row)), f"meta.{MARK}": (row["meta"] or {}).get(MARK)}
    lines = value_diff(old, {"access": readable_grants(grants)})
    if is_marked(row) or grants_of(row) != grants:
        plan.add(
            message(
                "keep model row {model}, which an admin has changed, without the pack's part of it",
                model=model,
            ),
            lines,
            partial(_release, server, model, grants),
        )


def _given(row: Json) -> Grants | None:
    """The grants that the pack gave a row; None where it did not note them: then they count as its own."""
    if row["id"] == REPLAY and not is_marked(row):
        return frozenset({("user", "*", "read")})
    noted = row["meta"][MARK].get("grants")
    if not isinstance(noted, list):
        return None
    return grants_of({"access_grants": [grant for grant in noted if isinstance(grant, dict)]})


def _is_changed(row: Json) -> bool:
    """Whether an admin has put something into a row, or switched it off."""
    meta = row["meta"] or {}
    if row["id"] == REPLAY and not is_marked(row):
        ours = {key: value for key, value in meta.items() if value} == REPLAY_META
        return not ours or bool(row["params"]) or row["name"] != "Response cache" or not row["is_active"]
    description = meta.get("description") or ""
    name = (meta[MARK].get("alias") or row["id"]) if isinstance(meta[MARK], dict) else row["id"]
    is_described = description and not is_our_description(name, description)
    has_picture = meta.get("profile_image_url") not in {None, "", "/static/favicon.png"}
    return has_additions(row) or not row["is_active"] or bool(is_described) or has_picture


def _release(server: OpenWebUI, model: str, grants: Grants) -> None:
    """Take the mark and the pack's grants off a row, as it is by now."""
    row = server.model_row(model)
    form = {key: row[key] for key in ("id", "name", "params", "base_model_id", "is_active")}
    meta = {key: value for key, value in (row["meta"] or {}).items() if key != MARK}
    server.post("/api/v1/models/model/update", form | {"meta": meta})
    if grants_of(row) != grants:
        server.post("/api/v1/models/model/access/update", {"id": model, "access_grants": grant_forms(grants)})


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
