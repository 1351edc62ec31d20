"""Make an Open WebUI deployment match pack.yaml: plugins, their valves, and the published aliases.

Run it again at any time: what matches already is left alone. `--dry-run` shows every change and makes none.
`--remove` shows and takes out everything that the pack made. `--check-valves` prints what is wrong with
the valves that are stored.
"""

import argparse
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from deploy.client import OpenWebUI, Pipelines
from deploy.config import PackConfig, load_config
from deploy.errors import DeployError, UsageError
from deploy.functions import plan_function
from deploy.pipelines import plan_pipeline
from deploy.pipelines_folder import plan_folder, plan_reload
from deploy.plan import Plan, Step, Trouble
from deploy.plugin import LocalPlugin, load_plugin
from deploy.removal import plan_folder_removal, plan_pipelines_removal, plan_removal
from deploy.rows import plan_hidden, plan_rows, unanswered
from deploy.shown import SECRETS, message, plain, say, translated
from deploy.tools import plan_tool
from deploy.valves import function_valves, pipeline_valves
from deploy.voice import ROUTES, Voicing
from package import command_line

ROOT = Path(__file__).resolve().parent.parent
DONE, FAILED, USAGE = 0, 1, 2
SCREENFUL = 40  # lines of one diff on a terminal
SECTIONS = {
    "budgets": "usage_budgets",
    "cache": "response_cache_filter",
    "metrics": "ollama_pack_events",
    "router": "gpu_router",
    "voice": "voice_transcription",
    "warm": "gpu_router",
}
GATEWAY = "ollama_pack_gateway"  # wanted by whoever has a section for it, whatever `plugins` names
# What may run as a function and on the Pipelines server at once: whichever comes first resolves the alias.
ON_BOTH = {"model_alias_filter"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when all is done, 1 when something was refused or failed, 2 for bad usage."""
    options = _parser().parse_args(arguments)
    out, err = _console(), _console(stderr=True)
    try:
        plan = _upload(out, options)
    except DeployError as error:
        say(err, (str(error), "red"))
        return USAGE if isinstance(error, UsageError) else FAILED
    except KeyboardInterrupt:
        say(err, (message("stopped: nothing was changed but what is said to be done above"), "red"))
        return FAILED
    for problem in plan.problems:
        say(err, (message("not done:"), "yellow"), f" {problem}")
    return FAILED if plan.problems else DONE


def _console(*, stderr: bool = False) -> Console:
    # emoji: the model `a:x:b` is none
    return Console(stderr=stderr, highlight=False, soft_wrap=True, emoji=False)


def _upload(console: Console, options: argparse.Namespace) -> Plan:
    """Compare, then show or carry out what differs."""
    if options.remove:
        return _remove(console, options)
    if options.check_valves:
        return _check_valves(console)
    root = options.source or ROOT
    config = load_config(options.config) if options.source is None else _everything_in(root)
    wanted = wanted_plugins(config, options.only, root)
    for section in ignored_sections(config) if root == ROOT else ():
        say(
            console,
            message(
                "note: `{section}` has no effect: `plugins` leaves {plugin} out",
                section=section,
                plugin=SECTIONS[section],
            ),
        )
    folder = options.pipelines_dir
    with servers(needed=folder is None) as (webui, pipelines):
        if config.pipelines is None:
            for name in sorted(left_out(config, wanted, webui, pipelines or folder)):
                say(
                    console,
                    message(
                        "note: {name} runs as a function; `pipelines: [{name}]` puts it on the Pipelines "
                        "server",
                        name=name,
                    ),
                )
        plan = make_plan(config, wanted, webui, pipelines, folder, root)
        if not plan.steps:
            say(console, message("nothing to change"))
        elif options.dry_run:
            _show(console, plan)
        else:
            _carry_out(console, plan)
            if webui:
                plan.problems += Voicing(config.voice, webui, wanted).problems()
                offered = webui.models(refresh=True)  # so that the rows are known at once
                if not options.only and _is_routed(config):
                    plan.problems += _after_routed(console, config, webui, offered)
    return plan


def _after_routed(
    console: Console, config: PackConfig, webui: OpenWebUI, offered: Collection[str]
) -> list[Trouble]:
    """What could only be seen once the router was there."""
    if config.router and config.router.hide_models:
        plan = Plan()
        plan_hidden(plan, webui)
        if plan.steps:
            _carry_out(console, plan)
            webui.models(refresh=True)
    return unanswered(config, offered) if config.says_aliases else []


def _remove(console: Console, options: argparse.Namespace) -> Plan:
    """Show what the pack made, and take it out unless that was all that was asked for."""
    if options.only:
        raise UsageError(message("--remove takes out the whole pack: leave --only out"))
    if options.source:
        raise UsageError(
            message("--remove takes out the pack alone: delete plugins of your own on the server's page")
        )
    folder = options.pipelines_dir
    with servers(needed=folder is None) as (webui, pipelines):
        plan = removal(webui, pipelines, folder)
        if not plan.steps:
            say(console, message("there is nothing to remove"))
            return plan
        _show(console, plan, to_make=not options.dry_run)
        if not options.dry_run:
            _carry_out(console, plan)
            again = removal(webui, pipelines, folder)  # what was being published while the first ran
            if again.steps:
                _carry_out(console, again)
            if webui:
                webui.models(refresh=True)
    return plan


def _check_valves(console: Console) -> Plan:
    """Print what is wrong with the valves that are stored, by the plugins of this version."""
    plan = Plan()
    with servers() as (webui, pipelines):
        places: list[tuple[str, Callable[[str], dict[str, Any]], Collection[str]]] = []
        if webui:
            kinds = ("functions", "tools")
            places += [(kind, partial(webui.valves, kind), webui.plugins(kind)) for kind in kinds]
        if pipelines:
            places.append(("pipelines", pipelines.valves, pipelines.installed()))
        for folder, valves, installed in places:
            for plugin in _load(ROOT, folder, set(installed)):
                try:
                    plugin.check_valves(valves(plugin.id))
                except DeployError as error:
                    plan.problems.append(Trouble(plugin.id, str(error)))
                else:
                    say(console, message("{plugin}: the stored valves are fine", plugin=plugin.id))
    return plan


def removal(webui: OpenWebUI | None, pipelines: Pipelines | None, folder: Path | None) -> Plan:
    """The steps that take the pack out of the servers that are named."""
    plan, known = Plan(), available_plugins()
    if webui:
        plan_removal(plan, webui, known)
    if folder:
        plan_folder_removal(plan, folder, pipelines, known["pipelines"])
    elif pipelines:
        plan_pipelines_removal(plan, pipelines, known["pipelines"])
    return plan


def _parser() -> argparse.ArgumentParser:
    parser = command_line(
        translated(__doc__),
        message(
            "Environment: OPEN_WEBUI_URL, OPEN_WEBUI_TOKEN (or OPEN_WEBUI_EMAIL and "
            "OPEN_WEBUI_PASSWORD), PIPELINES_URL, PIPELINES_API_KEY, PIPELINES_DIR."
        ),
    )
    parser.add_argument(
        "config", nargs="?", type=Path, default=Path("pack.yaml"), help=message("default: pack.yaml")
    )
    parser.add_argument(
        "--dry-run", action="store_true", help=message("print the plan as a diff and change nothing")
    )
    parser.add_argument(
        "--from",
        metavar="DIR",
        dest="source",
        type=Path,
        help=message(
            "upload the plugins in DIR/functions, DIR/tools and DIR/pipelines instead of the "
            "pack's, with their default valves; pack.yaml is not read (docs/packaging.md)"
        ),
    )
    parser.add_argument(
        "--remove",
        action="store_true",
        help=message("take out all that the pack made, and nothing of an admin's; pack.yaml is not read"),
    )
    parser.add_argument(
        "--check-valves",
        action="store_true",
        help=message("print what is wrong with the valves that are stored; pack.yaml is not read"),
    )
    parser.add_argument(
        "--only", metavar="ID", action="append", default=[], help=message("this plugin only (repeatable)")
    )
    mounted = os.environ.get("PIPELINES_DIR")
    parser.add_argument(
        "--pipelines-dir",
        metavar="DIR",
        type=Path,
        default=Path(mounted) if mounted else None,
        help=message(
            "write pipelines into the folder that the server has mounted, and reload it if "
            "PIPELINES_URL names it"
        ),
    )
    return parser


def _everything_in(root: Path) -> PackConfig:
    """What pack.yaml would say of a folder of other plugins: all are installed, each in one place."""
    found = available_plugins(root)
    if not any(found.values()):
        raise UsageError(
            message("--from {root}: there is no plugin in its functions, tools or pipelines", root=root)
        )
    return PackConfig(pipelines=sorted(found["pipelines"]))


def available_plugins(root: Path = ROOT) -> dict[str, set[str]]:
    """Ids of the plugin files in the repository, or below another folder, by the folder that they are in."""
    return {
        folder: {path.stem for path in (root / folder).glob("*.py")}
        for folder in ("functions", "tools", "pipelines")
    }


def ignored_sections(config: PackConfig) -> list[str]:
    """Sections of pack.yaml whose plugin it leaves out."""
    wanted = wanted_plugins(config, [])
    said = config.model_fields_set
    return [name for name, plugin in SECTIONS.items() if name in said and plugin not in wanted]


def wanted_plugins(config: PackConfig, only: list[str], root: Path = ROOT) -> set[str]:
    """Ids of the plugins to install."""
    known = set().union(*available_plugins(root).values())
    there_are = message("there are {known}", known=", ".join(sorted(known)))
    wanted = known - {ROUTES} if config.plugins is None else set(config.plugins)
    if config.gateway is not None:
        wanted |= {GATEWAY} & known
    if unknown := wanted - known:
        names = ", ".join(map(repr, sorted(unknown)))
        raise DeployError(
            message("plugins: this version has no {names}; {there_are}", names=names, there_are=there_are)
        )
    pipelines = available_plugins(root)["pipelines"]
    if unknown := set(config.pipelines or ()) - pipelines:
        names = ", ".join(map(repr, sorted(unknown)))
        raise DeployError(
            message(
                "pipelines: there is no {names} for it; there are {pipelines}",
                names=names,
                pipelines=", ".join(sorted(pipelines)),
            )
        )
    for name in only:
        if name not in known:
            raise UsageError(
                message("--only {name}: there is no such plugin; {there_are}", name=name, there_are=there_are)
            )
        if name not in wanted:
            raise UsageError(
                message("--only {name}: pack.yaml leaves it out with `plugins:`; add it there", name=name)
            )
    return wanted & set(only) if only else wanted


@contextmanager
def servers(*, needed: bool = True) -> Iterator[tuple[OpenWebUI | None, Pipelines | None]]:
    """The servers that the environment names, signed in; unless `needed` there may be none."""
    env = os.environ
    for name in ("OPEN_WEBUI_TOKEN", "OPEN_WEBUI_PASSWORD", "PIPELINES_API_KEY"):
        SECRETS.add(env.get(name))
    if needed and not (env.get("OPEN_WEBUI_URL") or env.get("PIPELINES_URL")):
        raise UsageError(
            message("set OPEN_WEBUI_URL (such as http://localhost:8080), PIPELINES_URL, or both")
        )
    webui = sign_in() if env.get("OPEN_WEBUI_URL") else None
    pipelines = None
    if url := env.get("PIPELINES_URL"):
        pipelines = Pipelines(url, env.get("PIPELINES_API_KEY", ""))
    try:
        yield webui, pipelines
    finally:
        for server in (webui, pipelines):
            if server:
                server.close()


def sign_in() -> OpenWebUI:
    """The Open WebUI that the environment names, as its admin.

    Raises:
        UsageError: the environment has neither a token nor e-mail address and password.
        DeployError: the server refuses them, or they are not an admin's.
    """
    env = os.environ
    url, token = env["OPEN_WEBUI_URL"].strip(), env.get("OPEN_WEBUI_TOKEN", "").strip()
    if token:
        webui = OpenWebUI(url, token)
    elif env.get("OPEN_WEBUI_EMAIL") and env.get("OPEN_WEBUI_PASSWORD"):
        webui = OpenWebUI.sign_in(url, env["OPEN_WEBUI_EMAIL"], env["OPEN_WEBUI_PASSWORD"])
    else:
        raise UsageError(message("set OPEN_WEBUI_TOKEN, or OPEN_WEBUI_EMAIL and OPEN_WEBUI_PASSWORD"))
    webui.require_admin()
    return webui


def make_plan(  # noqa: PLR0913, PLR0917 - what goes where is all that it is about
    config: PackConfig,
    wanted: set[str],
    webui: OpenWebUI | None,
    pipelines: Pipelines | None,
    folder: Path | None = None,
    root: Path = ROOT,
) -> Plan:
    """Compare the servers with the file. Every plugin is loaded here first, so that its errors are seen.

    Args:
        config: the file.
        wanted: ids of the plugins.
        webui: the Open WebUI, if one is named.
        pipelines: the Pipelines server, if one is named.
        folder: where pipelines are written instead of being uploaded.
        root: the folder that has `functions`, `tools` and `pipelines`.
    """
    plan = Plan()
    if webui:
        voicing = Voicing(config.voice, webui, wanted)
        for plugin in _load(root, "functions", wanted - set(config.pipelines or ())):
            valves = function_valves(plugin, config) | voicing.function_valves(plugin)
            plan_function(plan, webui, plugin, valves)
        for plugin in _load(root, "tools", wanted):
            plan_tool(plan, webui, plugin, voicing.tool_valves, voicing.grants)
        voicing.plan_microphone(plan)
        if wanted & {"model_alias_filter", "gpu_router"} and config.says_aliases:
            plan_rows(plan, webui, config, routed=_is_routed(config))
        plan.problems += _twice(config, wanted, webui)
    if pipelines or folder:
        left = left_out(config, wanted, webui, pipelines or folder) if root == ROOT else set()
        there = _load(root, "pipelines", wanted - left)
        _plan_pipelines(plan, config, there, pipelines, folder)
    return plan


def _plan_pipelines(
    plan: Plan,
    config: PackConfig,
    plugins: list[LocalPlugin],
    server: Pipelines | None,
    folder: Path | None,
) -> None:
    if folder:
        steps = Plan()
        for plugin in plugins:
            plan_folder(steps, folder, plugin, pipeline_valves(plugin, config))
        plan_reload(steps, server, plugins)
        plan.steps += steps.steps
    elif server:
        for plugin in plugins:
            plan_pipeline(plan, server, plugin, pipeline_valves(plugin, config))


def left_out(
    config: PackConfig, wanted: set[str], webui: OpenWebUI | None, there: Pipelines | Path | None
) -> set[str]:
    """Ids of the plugins that a Pipelines server could have and does not get.

    Behind one Open WebUI a plugin belongs in one of both places: two routers offer every model twice.
    """
    could = wanted & available_plugins()["pipelines"] if there else set()
    if config.pipelines is not None:
        return could - set(config.pipelines)
    return could - ON_BOTH if webui else set()


def _twice(config: PackConfig, wanted: set[str], webui: OpenWebUI) -> Iterator[Trouble]:
    """Plugins that go to the Pipelines server, and that run as a function still."""
    installed = webui.plugins("functions")
    for name in sorted(wanted & set(config.pipelines or ()) - ON_BOTH):
        if installed.get(name, {}).get("is_active"):
            said = message("also runs as a function")
            yield Trouble(name, said, message("switch it off in Open WebUI (Admin Panel → Functions)"))


def _is_routed(config: PackConfig) -> bool:
    """Whether the deployment gets the router: then it answers the published aliases."""
    return "gpu_router" in wanted_plugins(config, [])


def _load(root: Path, folder: str, wanted: set[str]) -> list[LocalPlugin]:
    names = sorted(available_plugins(root)[folder] & wanted)
    return [load_plugin(root / folder / f"{name}.py") for name in names]


def _show(console: Console, plan: Plan, *, to_make: bool = False) -> None:
    colours = {"+": "green", "-": "red", "@": "cyan"}
    for step in plan.steps:
        say(console, (step.what, "bold"))
        shown = step.diff[:SCREENFUL] if console.is_terminal else step.diff
        for line in shown:
            say(console, (f"    {line}", colours.get(line[:1], "dim")))
        if left := len(step.diff) - len(shown):
            more = message("… and {count} more lines: send the output to a file to see them all", count=left)
            say(console, f"    {more}")
    count = len(plan.steps)
    if to_make:
        one, several = message("1 change to make:"), message("{count} changes to make:", count=count)
    else:
        one = message("1 change to make; nothing was changed")
        several = message("{count} changes to make; nothing was changed", count=count)
    say(console, one if count == 1 else several)


def _carry_out(console: Console, plan: Plan) -> None:
    """Take the steps in order. When one fails say what was done and what was not, and stop."""
    with console.status("") as status:
        for number, step in enumerate(plan.steps):
            status.update(
                escape(
                    message(
                        "{number} of {count}: {what}",
                        number=number + 1,
                        count=len(plan.steps),
                        what=plain(step.what),
                    )
                )
            )
            try:
                step.run()
            except (DeployError, KeyboardInterrupt) as error:
                raise _stopped(plan.steps[number:], error) from error
            say(console, (message("done:"), "green"), f" {step.what}")


def _stopped(left: list[Step], error: BaseException) -> DeployError:
    """What to tell when the first of these steps did not end well."""
    what = left[0].what
    reason = (
        message("{what} failed: {error}", what=what, error=error)
        if isinstance(error, DeployError)
        else message("stopped at: {what}", what=what)
    )
    rest = (f"  {message('not done:')} {step.what}" for step in left)
    return DeployError("\n".join([reason, *rest, message("Run the same command again to finish.")]))


if __name__ == "__main__":
    sys.exit(main())
