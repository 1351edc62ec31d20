"""What fits where, what to pull, and what one more GPU would bring.

It asks the nodes of pack.yaml what they have, and changes nothing. The demand comes from the router's own
record of chats (OPEN_WEBUI_URL and OPEN_WEBUI_TOKEN, as for upload.py), from a file (--record), or is taken
to be equal for all models of pack.yaml.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from deploy.client import OpenWebUI
from deploy.config import PackConfig, load_config
from deploy.errors import DeployError, ServerError, UsageError
from deploy.shown import message, plain, say, say_json, translated
from ollama_pack.routing.plan.demand import MAX_RECORDS, Demand, asked_in
from ollama_pack.routing.plan.report import (
    GIGABYTE,
    LEAST_CONTEXT,
    MOST_CONTEXT,
    MOST_USERS,
    USUAL_CONTEXT,
    PlanReport,
    WantedModels,
    plan_report,
)
from package import command_line
from planning.nodes import look_at
from planning.record import read_record
from upload import servers

PAGES = 100
PIPE_WIDTH = 10_000  # a pipe or file has no edge at which a table must end; it takes as much as it needs


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line(translated(__doc__))
    parser.add_argument(
        "config", nargs="?", type=Path, default=Path("pack.yaml"), help=message("default: pack.yaml")
    )
    parser.add_argument(
        "--context",
        type=_count(LEAST_CONTEXT, MOST_CONTEXT),
        default=USUAL_CONTEXT,
        help=message("tokens for each chat; default: {count}", count=USUAL_CONTEXT),
    )
    parser.add_argument(
        "--users",
        type=_count(1, MOST_USERS),
        help=message("people who use chats; sets how many answers run at once"),
    )
    parser.add_argument(
        "--record", type=Path, help=message("chats as JSON, one on a line, instead of the router's")
    )
    parser.add_argument("--json", action="store_true", help=message("print all of it as JSON"))
    options = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    try:
        config = load_config(options.config)
        report = examine(config, options.context, options.users, options.record)
    except UsageError as error:
        parser.error(plain(error))
    except DeployError as error:
        say(console, ("✗", "red"), f" {plain(error, 4000)}")
        return 1
    if options.json:
        say_json(console, report.as_json)
    else:
        show(console, report)
    return 1 if all(node.fault for node in report.nodes) else 0


def _count(least: int, most: int) -> Any:
    def read(written: str) -> int:
        if written.isdecimal() and least <= int(written[:9]) <= most:
            return int(written)
        raise argparse.ArgumentTypeError(
            message(
                "must be a whole number from {least} to {most}, not {written!r}",
                least=least,
                most=most,
                written=written,
            )
        )

    return read


def examine(config: PackConfig, context: int, users: int | None, record: Path | None) -> PlanReport:
    """Look at the nodes and the demand, and plan.

    Raises:
        DeployError: there is nothing to plan, or the record cannot be read.
    """
    if not config.nodes:
        raise DeployError(message("pack.yaml names no node: add model_provider.endpoints"))
    agents = Counter(node.agent for node in config.nodes if node.agent)
    shared = [agent for agent, count in agents.items() if count > 1]
    nodes = [look_at(node, number, shared) for number, node in enumerate(config.nodes)]
    names = [name for alias in config.aliases for name in alias.local_name if "*" not in name]
    automatic = {
        name for alias in config.aliases if alias.quantization == ["auto"] for name in alias.local_name
    }
    wanted = WantedModels(tuple(names), frozenset(automatic))
    return plan_report(nodes, wanted, _record(record), context=context, users=users)


def _record(path: Path | None) -> Demand:
    """The chats that people had."""
    if path:
        asked = read_record(path)
        return Demand(asked, message("{count} chats of {file}", count=len(asked), file=path.name))
    try:
        with servers() as (webui, _):
            asked = asked_in(_pages(webui)) if webui else []
    except UsageError:
        return Demand(
            (),
            message(
                "the same for each model of pack.yaml, as no server is named (OPEN_WEBUI_URL) and no --record"
            ),
        )
    if not asked:
        return Demand(
            (), message("the same for each model of pack.yaml, as the router has no record of chats")
        )
    return Demand(asked, message("{count} chats of the router's record", count=len(asked)))


def _pages(webui: OpenWebUI) -> Iterator[Mapping[str, Any]]:
    """The chats of the dashboard's history, the newest first."""
    before, count = "", 0
    for _ in range(PAGES):
        try:
            page = webui.get("/ollama-pack/chats", {"chats": [dict]}, before=before)
        except ServerError:
            return
        yield from page["chats"]
        count += len(page["chats"])
        before = str(page.get("next") or "")
        if not before or count >= MAX_RECORDS:
            return


def show(console: Console, report: PlanReport) -> None:
    """Print it for people."""
    for node in report.nodes:
        about = (
            translated(node.fault)
            or (
                node.room
                and message(
                    "{room} GB for models, {source}", room=f"{node.room / GIGABYTE:.1f}", source=node.source
                )
            )
            or message("its memory is not known")
        )
        say(console, ("✗", "red") if node.fault else ("✓", "green"), f" {node.name}: {plain(about)}")
    for note in report.notes:
        say(console, ("!", "yellow"), f" {plain(translated(note))}")
    nodes = list(dict.fromkeys(row["node"] for row in report.rows))
    if nodes:
        console.print(_table(report, nodes))
        say(
            console,
            message(
                "✓✓ fits next to the others of the plan · ✓ fits alone · spills: a part is computed by the "
                "CPU · cannot: nearly all of it would be · * is the plan"
            ),
        )
    say(console, message("Demand: {source}.", source=plain(report.demand)))
    for model in report.plan.unplaced:
        about = message(
            "{model} fits nowhere next to the others: it is loaded when asked for", model=plain(model)
        )
        say(console, ("!", "yellow"), f" {about}")
    say(console, message("To pull:") if report.pulls else message("Nothing has to be pulled."))
    for line in report.pulls:
        say(console, f"    {plain(line)}")
    if report.replays:
        console.print(_replay_table(report.replays))


def _table(report: PlanReport, nodes: Sequence[str]) -> Table:
    marks = {"fits beside": "✓✓", "fits": "✓", "spills": message("spills"), "cannot": message("cannot")}
    title = message("With {count} tokens for each chat", count=f"{report.context:,}")
    # Whole names on a narrow terminal, too: they are what `ollama pull` takes.
    model, bits = Column(message("model"), overflow="fold"), Column(message("bits"), overflow="fold")
    table = Table(model, bits, *nodes, title=title)
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in report.rows:
        mark = f"{marks[row['state']]} {row['bytes'] / GIGABYTE:.1f}{'*' if row['planned'] else ''}"
        cells.setdefault((row["variant"] or row["model"], row["level"]), {})[row["node"]] = mark
    for (name, level), by_node in cells.items():
        found = (by_node.get(node, "") for node in nodes)
        table.add_row(Text(plain(name)), Text(plain(level)), *found)  # not as Rich's markup
    return table


def _replay_table(replays: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        message("fleet"),
        message("first token, mean"),
        "p95",
        message("models loaded"),
        message("refused"),
        title=message("The record again, simulated"),
    )
    for one in replays:
        table.add_row(
            translated(one["fleet"]),
            f"{one['mean_seconds']} s",
            f"{one['p95_seconds']} s",
            str(one["loads"]),
            str(one["refused"]),
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
