"""What fits where, what to pull, and what one more GPU would bring.

It asks the nodes of pack.yaml what they have, and changes nothing. The demand comes from the router's own
record of chats (OPEN_WEBUI_URL and OPEN_WEBUI_TOKEN, as for upload.py), from a file (--record), or is taken
to be equal for all models of pack.yaml.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.client import OpenWebUI
from deploy.config import PackConfig, load_config
from deploy.errors import DeployError, ServerError, UsageError
from deploy.shown import message, plain, say
from ollama_pack.engines.ollama.names import find_model, quantization_in, variants_of
from ollama_pack.fit.choose import quality_order, usable_memory
from ollama_pack.fit.planning import (
    FleetPlan,
    PlannedModel,
    PlannedNode,
    PlannedVariant,
    need_of,
    plan_fleet,
    state_of,
)
from ollama_pack.fit.shapes import in_other_bits, level_bits, parameters_in, planned_shape
from package import add_version
from planning.demand import MAX_RECORDS, Asked, asked_in, busiest_hour, read_record, speeds_of
from planning.nodes import SeenNode, look_at
from planning.replay import ReplayNode, replay
from upload import servers

CONTEXT = 8192
LEVELS = ("Q8_0", "Q6_K", "Q4_K_M", "Q3_K_M")  # that the table has, whether they are installed or not
GPUS = (24, 48, 80)  # GB of one more GPU, next to those that the fleet has
ACTIVE_SHARE = 0.1  # of people who use a chat, those who wait for an answer at one moment
PAGES = 100
GB = 1e9


@dataclass
class Report:
    """All that was found out."""

    nodes: list[SeenNode]
    models: list[PlannedModel]
    rows: list[dict[str, Any]] = field(default_factory=list)
    plan: FleetPlan = field(default_factory=FleetPlan)
    pulls: list[str] = field(default_factory=list)
    demand: str = ""
    replays: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "nodes": [
                {
                    "name": node.name,
                    "room_bytes": node.room,
                    "room_from": node.source,
                    "slots": node.slots,
                    "fault": node.fault,
                }
                for node in self.nodes
            ],
            "fits": self.rows,
            "plan": [
                {
                    "node": one.node,
                    "model": one.model,
                    "variant": one.variant.name,
                    "level": one.variant.level,
                    "bytes": one.need,
                    "pull": one.pull,
                }
                for one in self.plan.placements
            ],
            "unplaced": self.plan.unplaced,
            "pulls": self.pulls,
            "demand": self.demand,
            "replays": self.replays,
            "notes": self.notes,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_version(parser)
    parser.add_argument(
        "config", nargs="?", type=Path, default=Path("pack.yaml"), help=message("default: pack.yaml")
    )
    parser.add_argument(
        "--context",
        type=_count(256, 2**22),
        default=CONTEXT,
        help=message("tokens for each chat; default: {count}", count=CONTEXT),
    )
    parser.add_argument(
        "--users",
        type=_count(1, 10**6),
        help=message("people who use chats; sets how many answers run at once"),
    )
    parser.add_argument(
        "--record", type=Path, help=message("chats as JSON, one on a line, instead of the router's")
    )
    parser.add_argument("--json", action="store_true", help=message("print all of it as JSON"))
    options = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    try:
        config = load_config(options.config)
        report = examine(config, options.context, options.users, options.record)
    except UsageError as error:
        parser.error(plain(error))
    except DeployError as error:
        say(console, ("✗", "red"), f" {plain(error, 4000)}")
        return 1
    if options.json:
        console.print_json(json.dumps(report.as_json, ensure_ascii=False))
    else:
        show(console, report, options.context)
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


def examine(config: PackConfig, context: int, users: int | None, record: Path | None) -> Report:
    """Look at the nodes and the demand, and plan.

    Raises:
        DeployError: there is nothing to plan, or the record cannot be read.
    """
    if not config.nodes:
        raise DeployError(message("pack.yaml names no node: add model_provider.endpoints"))
    nodes = [look_at(node, number) for number, node in enumerate(config.nodes)]
    asked, source = _record(record)
    models = list(_models(config, nodes, asked, users))
    report = Report(nodes, models, demand=source)
    known = [node for node in nodes if node.room and not node.fault]
    for node in nodes:
        if not node.fault and not node.room:
            report.notes.append(
                message(
                    "{name}: nobody knows how much memory it has. Add memory: 24GB to it in pack.yaml, "
                    "or start scripts/gpu_agent.py there.",
                    name=node.name,
                )
            )
    planned = [node.planned for node in known]
    report.plan = plan_fleet(planned, models, context)
    report.rows = list(_rows(planned, models, report.plan, context))
    urls = {node.name: node.url for node in known}
    report.pulls = [
        f"OLLAMA_HOST={urls[one.node]} ollama pull {one.variant.name}"
        for one in report.plan.placements
        if one.pull
    ]
    if asked and known:
        report.replays = list(_replays(known, models, report.plan, asked, context))
    return report


def _record(path: Path | None) -> tuple[list[Asked], str]:
    """The chats that people had, and where they come from."""
    if path:
        asked = read_record(path)
        return asked, message("{count} chats of {name}", count=len(asked), name=path.name)
    try:
        with servers() as (webui, _):
            asked = asked_in(_pages(webui)) if webui else []
    except UsageError:
        return (
            [],
            message(
                "the same for each model of pack.yaml, as no server is named (OPEN_WEBUI_URL) and no --record"
            ),
        )
    if not asked:
        return [], message("the same for each model of pack.yaml, as the router has no record of chats")
    return asked, message("{count} chats of the router's record", count=len(asked))


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


def _models(
    config: PackConfig, nodes: Sequence[SeenNode], asked: Sequence[Asked], users: int | None
) -> Iterator[PlannedModel]:
    """What people ask for: the models of the record and of pack.yaml, in all quantizations that are there."""
    there = {name: one for node in nodes for name, one in node.variants.items()}
    levels = {name: one.level for name, one in there.items()}
    named = [name for alias in config.aliases for name in alias.local_name if "*" not in name]
    wanted = list(dict.fromkeys([*named, *(one.model for one in asked)])) or sorted(there)
    busy = busiest_hour(asked)
    if not busy:
        busy = dict.fromkeys(wanted, 1 / max(1, len(wanted)))
    scale = users * ACTIVE_SHARE / max(1e-9, sum(busy.values())) if users else 1.0
    automatic = {
        name for alias in config.aliases if alias.quantization == ["auto"] for name in alias.local_name
    }
    covered: set[str] = set()
    for name in wanted:
        exact = find_model(name, there)
        family = variants_of(name, levels) if name in automatic else {exact: ""} if exact else {}
        variants = [there[one] for one in quality_order(list(family), [levels[one] for one in family])]
        if not variants and parameters_in(name):
            variants = [_not_pulled(name)]
        names = {one.name for one in variants}
        if variants and not names & covered:
            covered |= names
            yield PlannedModel(
                name, tuple(variants), scale * sum(busy.get(one, 0.0) for one in names | {name})
            )


def _not_pulled(name: str) -> PlannedVariant:
    """A model that no node has, by what its name says. Ollama's usual quantization is Q4_K_M."""
    level = quantization_in(name) or "Q4_K_M"
    bits = level_bits(level) or level_bits("Q4_K_M")
    return PlannedVariant(name, level, bits, planned_shape(parameters_in(name), bits))


def _rows(
    nodes: Sequence[PlannedNode], models: Sequence[PlannedModel], plan: FleetPlan, context: int
) -> Iterator[dict[str, Any]]:
    """Nodes, models and quantizations, those that are there and the usual ones."""
    for model in models:
        best = model.variants[0]
        usual = [
            PlannedVariant(
                "",
                level,
                level_bits(level),
                in_other_bits(best.shape, best.bits or level_bits("Q4_K_M"), level_bits(level)),
            )
            for level in LEVELS
            if level not in {one.level.upper() for one in model.variants}
        ]
        for variant in sorted([*model.variants, *usual], key=lambda one: -one.bits):
            for node in nodes:
                need = need_of(variant, node, context)
                beside = sum(one.need for one in plan.on(node.name) if one.model != model.name)
                yield {
                    "model": model.name,
                    "variant": variant.name,
                    "level": variant.level,
                    "node": node.name,
                    "bytes": need,
                    "state": state_of(need, node.room, beside),
                    "installed": variant.name in node.installed,
                    "planned": any(one.variant == variant for one in plan.on(node.name)),
                }


def _replays(
    nodes: Sequence[SeenNode],
    models: Sequence[PlannedModel],
    plan: FleetPlan,
    asked: Sequence[Asked],
    context: int,
) -> Iterator[dict[str, Any]]:
    """The recorded chats again: on the nodes as they are, with the plan, and with one more GPU."""
    speeds = speeds_of(asked)
    names = {variant.name: model.name for model in models for variant in model.variants}
    known = [replace(one, model=names.get(one.model, one.model)) for one in asked]

    def now(node: SeenNode) -> ReplayNode:
        sizes = {
            model.name: min(
                need_of(one, node.planned, context) for one in model.variants if one.name in node.variants
            )
            for model in models
            if any(one.name in node.variants for one in model.variants)
        }
        return ReplayNode(node.name, node.room, node.slots, sizes)

    def then(node: PlannedNode, plan: FleetPlan, sizes: Mapping[str, int]) -> ReplayNode:
        placed = {one.model: one.need for one in plan.on(node.name)}
        return ReplayNode(node.name, node.room, node.slots, {**sizes, **placed}, tuple(placed))

    before = [now(node) for node in nodes]
    sizes = {node.name: node.sizes for node in before}
    yield {"fleet": message("as it is")} | replay(before, known, speeds).figures
    planned = [node.planned for node in nodes]
    with_plan = [then(node, plan, sizes[node.name]) for node in planned]
    yield {"fleet": message("with the plan")} | replay(with_plan, known, speeds).figures
    rooms = {node.room for node in nodes} | {usable_memory(round(size * GB)) for size in GPUS}
    for room in sorted(rooms):
        slots = max(node.slots for node in nodes)
        more = [*planned, PlannedNode(message("one more"), room, slots)]
        plan_then = plan_fleet(more, models, context)
        fleet = [then(node, plan_then, sizes.get(node.name, {})) for node in more]
        yield {
            "fleet": message("with the plan and one more GPU, {room:.0f} GB for models", room=room / GB)
        } | replay(fleet, known, speeds).figures


_MARKS = {"fits beside": "✓✓", "fits": "✓", "spills": message("spills"), "cannot": message("cannot")}


def show(console: Console, report: Report, context: int) -> None:
    """Print it for people."""
    for node in report.nodes:
        told = node.fault or (
            message("{room:.1f} GB for models, by {source}", room=node.room / GB, source=node.source)
            if node.room
            else message("memory unknown")
        )
        say(console, ("✗", "red") if node.fault else ("✓", "green"), f" {node.name}: {plain(told)}")
    for note in report.notes:
        say(console, ("!", "yellow"), f" {plain(note)}")
    nodes = list(dict.fromkeys(row["node"] for row in report.rows))
    if nodes:
        console.print(_table(report.rows, nodes, context))
        say(
            console,
            message(
                "✓✓ fits next to the others of the plan · ✓ fits alone · spills: a part is computed "
                "by the CPU"
            ),
        )
        say(console, message("cannot: nearly all of it would be · * is the plan"))
    say(console, f"Demand: {plain(report.demand)}.")
    for model in report.plan.unplaced:
        say(
            console,
            ("!", "yellow"),
            " "
            + message(
                "{model} fits nowhere next to the others: it is loaded when asked for", model=plain(model)
            ),
        )
    say(console, message("To pull:") if report.pulls else message("Nothing has to be pulled."))
    for line in report.pulls:
        say(console, f"    {plain(line)}")
    if report.replays:
        console.print(_replay_table(report.replays))


def _table(rows: Sequence[Mapping[str, Any]], nodes: Sequence[str], context: int) -> Table:
    table = Table(
        "model", "bits", *nodes, title=message("With {context:,} tokens for each chat", context=context)
    )
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        mark = f"{_MARKS[row['state']]} {row['bytes'] / GB:.1f}{'*' if row['planned'] else ''}"
        cells.setdefault((row["variant"] or row["model"], row["level"]), {})[row["node"]] = mark
    for (name, level), by_node in cells.items():
        table.add_row(plain(name), plain(level), *(by_node.get(node, "") for node in nodes))
    return table


def _replay_table(replays: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        "fleet",
        message("first token, mean"),
        "p95",
        "loads",
        "refused",
        title=message("The record again, simulated"),
    )
    for one in replays:
        table.add_row(
            str(one["fleet"]),
            f"{one['mean_seconds']} s",
            f"{one['p95_seconds']} s",
            str(one["loads"]),
            str(one["refused"]),
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
