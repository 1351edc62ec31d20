"""Make an Open WebUI deployment match pack.yaml: plugins, their valves, and the published aliases.

Run it again at any time: what matches already is left alone. `--dry-run` shows every change and makes none.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from deploy.client import OpenWebUI, Pipelines
from deploy.config import PackConfig, load_config
from deploy.errors import DeployError, UsageError
from deploy.functions import plan_function
from deploy.pipelines import plan_pipeline
from deploy.plan import Plan
from deploy.plugin import LocalPlugin, load_plugin
from deploy.rows import plan_rows

ROOT = Path(__file__).resolve().parent.parent
DONE, FAILED, USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when all is done, 1 when something was refused or failed, 2 for bad usage."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=False, highlight=False, soft_wrap=True)
    try:
        config = load_config(options.config)
        wanted = wanted_plugins(config, options.only)
        with servers() as (webui, pipelines):
            plan = make_plan(config, wanted, webui, pipelines)
            if options.dry_run:
                _show(console, plan)
            else:
                _carry_out(console, plan)
                if webui and plan.steps:
                    webui.models(refresh=True)  # so that the rows are known at once
    except UsageError as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return USAGE
    except DeployError as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return FAILED
    for problem in plan.problems:
        console.print(f"[yellow]not done:[/] {escape(problem)}")
    return FAILED if plan.problems else DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Environment: OPEN_WEBUI_URL, OPEN_WEBUI_TOKEN (or OPEN_WEBUI_EMAIL and OPEN_WEBUI_PASSWORD), "
        "PIPELINES_URL, PIPELINES_API_KEY.",
    )
    parser.add_argument("config", nargs="?", type=Path, default=Path("pack.yaml"), help="default: pack.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print the plan as a diff and change nothing")
    parser.add_argument(
        "--only", metavar="ID", action="append", default=[], help="this plugin only (repeatable)"
    )
    return parser


def available_plugins() -> dict[str, set[str]]:
    """Ids of the plugin files in the repository, by the folder that they are in."""
    return {
        folder: {path.stem for path in (ROOT / folder).glob("*.py")} for folder in ("functions", "pipelines")
    }


def wanted_plugins(config: PackConfig, only: list[str]) -> set[str]:
    """Ids of the plugins to install."""
    known = set().union(*available_plugins().values())
    for name in only:
        if name not in known:
            raise UsageError(f"--only {name}: there is no such plugin; there are {', '.join(sorted(known))}")
    for name in config.plugins or ():
        if name not in known:
            raise DeployError(
                f"plugins: {name!r} is not in this version; there are {', '.join(sorted(known))}"
            )
    wanted = known if config.plugins is None else set(config.plugins)
    return wanted & set(only) if only else wanted


@contextmanager
def servers() -> Iterator[tuple[OpenWebUI | None, Pipelines | None]]:
    """The servers that the environment names, signed in."""
    env = os.environ
    if not (env.get("OPEN_WEBUI_URL") or env.get("PIPELINES_URL")):
        raise UsageError("set OPEN_WEBUI_URL (such as http://localhost:8080), PIPELINES_URL, or both")
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
    url, token = env["OPEN_WEBUI_URL"], env.get("OPEN_WEBUI_TOKEN")
    if token:
        webui = OpenWebUI(url, token)
    elif env.get("OPEN_WEBUI_EMAIL") and env.get("OPEN_WEBUI_PASSWORD"):
        webui = OpenWebUI.sign_in(url, env["OPEN_WEBUI_EMAIL"], env["OPEN_WEBUI_PASSWORD"])
    else:
        raise UsageError("set OPEN_WEBUI_TOKEN, or OPEN_WEBUI_EMAIL and OPEN_WEBUI_PASSWORD")
    webui.require_admin()
    return webui


def make_plan(
    config: PackConfig, wanted: set[str], webui: OpenWebUI | None, pipelines: Pipelines | None
) -> Plan:
    """Compare the servers with the file. Every plugin is loaded here first, so that its errors are seen."""
    plan = Plan()
    if webui:
        for plugin in _load("functions", wanted):
            plan_function(plan, webui, plugin, function_valves(plugin, config))
        if "model_alias_filter" in wanted:
            plan_rows(plan, webui, config)
    if pipelines:
        for plugin in _load("pipelines", wanted):
            plan_pipeline(plan, pipelines, plugin, pipeline_valves(plugin, config))
    return plan


def _load(folder: str, wanted: set[str]) -> list[LocalPlugin]:
    names = sorted(available_plugins()[folder] & wanted)
    return [load_plugin(ROOT / folder / f"{name}.py") for name in names]


def function_valves(plugin: LocalPlugin, config: PackConfig) -> dict[str, Any]:
    """The valves of a function that pack.yaml says something about."""
    sayings: dict[str, dict[str, Any]] = {
        "model_alias_filter": {"aliases": config.alias_text} if config.aliases else {},
    }
    return sayings.get(plugin.id, {})


def pipeline_valves(plugin: LocalPlugin, config: PackConfig) -> dict[str, Any]:
    """The same for the Pipelines server, whose filter must be told where to look for installed models."""
    valves = function_valves(plugin, config)
    urls = ",".join(node.url for node in config.nodes if node.kind == "ollama")
    if plugin.id == "model_alias_filter" and urls:
        valves["ollama_urls"] = urls
    return valves


def _show(console: Console, plan: Plan) -> None:
    colours = {"+": "green", "-": "red", "@": "cyan"}
    for step in plan.steps:
        console.print(f"[bold]{escape(step.what)}[/]")
        for line in step.diff:
            console.print(f"    {line}", style=colours.get(line[:1], "dim"), markup=False)
    console.print(f"{len(plan.steps)} changes; nothing was changed" if plan.steps else "nothing to change")


def _carry_out(console: Console, plan: Plan) -> None:
    """Take the steps in order. On an error say what was done and what was not, and stop."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(plan.steps))
        for number, step in enumerate(plan.steps):
            progress.update(task, description=step.what)
            try:
                step.run()
            except DeployError as error:
                progress.stop()
                left = "".join(f"\n  not done: {other.what}" for other in plan.steps[number:])
                raise DeployError(
                    f"{step.what} failed: {error}{left}\nRun the same command again to finish."
                ) from error
            progress.advance(task)
            console.print(f"[green]done:[/] {escape(step.what)}")
    if not plan.steps:
        console.print("nothing to change")


if __name__ == "__main__":
    sys.exit(main())
