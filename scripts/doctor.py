"""Check a deployment from the outside, and say for each thing that is wrong what to do about it.

It changes nothing. Exit status 1 when something is wrong, 0 when all is well or only worth a look.
"""

import asyncio
import email.utils
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import aiohttp
import redis
from rich.console import Console

from deploy.client import OpenWebUI, Pipelines, fits
from deploy.config import Endpoint, PackConfig, load_config
from deploy.errors import DeployError, ServerError, UnreachableError, UsageError
from deploy.installed import version_numbers
from deploy.microphone import (
    KEY_VALVE,
    MICROPHONE_PATH,
    ROUTE_PATH,
    is_ours,
    transcription_fault,
)
from deploy.plan import Plan, Trouble
from deploy.rows import listed_twice, unanswered
from deploy.shown import SECRETS, Secrets, message, plain, say, say_json, shown_address, translated
from deploy.voice import EVENTS, ROUTES, VOICE, microphone_valves
from deploy.web import Answer, fetch, login_page, sends_on
from ollama_pack.base.redis import redis_client, redis_fault
from ollama_pack.engines.errors import NodeError
from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.engines.ollama.names import find_model
from ollama_pack.engines.openai.client import OpenAIClient
from ollama_pack.engines.transport import NodeLimits
from ollama_pack.errors import SettingError
from ollama_pack.routing.nodes import DISCOVERED, SRV, NodeRow, parse_nodes
from ollama_pack.routing.probe.gpus import LOAD_PATH, report_in
from package import command_line
from upload import GATEWAY, available_plugins, make_plan, servers, wanted_plugins

OLDEST_VERSION = (0, 11, 2)
TESTED_VERSIONS = ("0.11.2", "0.12.4")
GATEWAY_MODELS = "/ollama-pack/v1/models"
# Filters whose work the gateway's own chain does, too.
IN_DIRECT = {"model_alias_filter", "response_cache_filter", "usage_budgets"}
CLOCK_SECONDS = 30.0
TIMEOUT_SECONDS = 5.0
REDIS_SECONDS = 3.0
# redis-py's errors of a Cluster are no `RedisError`.
REDIS_FAULTS = (
    *(redis.RedisError, redis.exceptions.RedisClusterException),
    *(SettingError, OSError, ValueError, RecursionError),
)

State = Literal["ok", "look", "wrong"]
_MARKS: dict[State, tuple[str, str]] = {"ok": ("✓", "green"), "look": ("!", "yellow"), "wrong": ("✗", "red")}


Stores = dict[str, tuple[str, str]]  # address of a Redis → whose it is, and how to correct it


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        subject: what was looked at.
        state: `ok`, `look` (works, but worth a look) or `wrong`.
        text: what was found.
        remedy: what to do; empty when all is well.
    """

    subject: str
    state: State
    text: str
    remedy: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line(translated(__doc__))
    parser.add_argument(
        "config", nargs="?", type=Path, default=Path("pack.yaml"), help=message("default: pack.yaml")
    )
    parser.add_argument("--json", action="store_true", help=message("print the findings as a JSON list"))
    options = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    try:
        findings = list(examine(load_config(options.config)))
    except UsageError as error:
        parser.error(plain(error))
    except DeployError as error:
        text = plain(error, 4000)
        findings = [Finding("pack.yaml", "wrong", text, message("correct it, then run the doctor again"))]
    if options.json:
        say_json(console, [_shown(finding) for finding in findings])
    else:
        _print(console, findings)
    return 1 if any(finding.state == "wrong" for finding in findings) else 0


def _shown(finding: Finding) -> dict[str, str]:
    """A finding as JSON: without secrets and control characters."""
    return {name: plain(value, 4000) for name, value in asdict(finding).items()}


def examine(config: PackConfig) -> Iterator[Finding]:
    """Look at everything that pack.yaml and the environment name.

    Raises:
        UsageError: the environment names no server, or not how to sign in.
    """
    stores: Stores = {}
    try:
        yield from _deployment(config, stores)
    except UsageError:
        raise
    except DeployError as error:
        yield Finding(
            message("deployment"), "wrong", str(error), message("mend this first, then run the doctor again")
        )
    for node in config.nodes:
        yield _node(node)
        if node.agent:
            yield _agent(node)
    yield from _redis(config, stores)


def _deployment(config: PackConfig, stores: Stores) -> Iterator[Finding]:
    """What the servers say of themselves; notes in `stores` which Redis they use."""
    with servers() as (webui, pipelines):
        if webui:
            yield _version(webui)
            yield _clock(webui)
            yield from _broken(config, webui)
        stores |= _stores(webui, pipelines)
        yield from _differences(config, webui, pipelines)
        if webui:
            if VOICE in webui.plugins("tools") and webui.plugins("functions").keys() & {EVENTS, ROUTES}:
                yield from _voice(webui)
            yield from _gateway(webui)
            offered = webui.models(refresh=True)
            yield from _candidates(config, {model.removeprefix(ROUTER) for model in offered})
            if twins := listed_twice(offered):
                yield _twins(twins)
            if ROUTER.rstrip(".") in webui.plugins("functions"):
                yield from (_as_finding(problem) for problem in unanswered(config, offered))


def _broken(config: PackConfig, webui: OpenWebUI) -> Iterator[Finding]:
    """Plugins that are installed and do not load there, for which a chat's log is the only other sign."""
    for plugin in webui.plugins("functions").keys() & wanted_plugins(config, []):
        try:
            webui.get(f"/api/v1/functions/id/{quote(plugin, safe='')}/valves/spec")
        except ServerError as error:
            remedy = message("its log says why; are plugins switched off (ENABLE_PLUGINS, ENABLE_FUNCTIONS)?")
            yield Finding(
                plugin,
                "wrong",
                message("does not load in Open WebUI ({detail})", detail=error.detail),
                remedy,
            )


def _gateway(webui: OpenWebUI) -> Iterator[Finding]:
    """Whether the gateway answers, and which filters its direct mode leaves out."""
    functions = webui.plugins("functions")
    if GATEWAY not in functions or not functions[GATEWAY].get("is_active"):
        return
    answer = webui.answer("GET", GATEWAY_MODELS)
    if not answer.ok:
        text = message("{path} answers {status}", path=GATEWAY_MODELS, status=answer.status)
        yield Finding(
            message("gateway"),
            "wrong",
            text,
            message("Open WebUI's log says why; switch the function off and on"),
        )
        return
    mode = webui.valves("functions", GATEWAY).get("mode") or "full"
    yield Finding(message("gateway"), "ok", message("answers in its mode {mode}", mode=mode))
    passed = [
        name
        for name, function in functions.items()
        if function.get("type") == "filter" and function.get("is_global") and function.get("is_active")
    ]
    passed = sorted(set(passed) - IN_DIRECT)
    if mode == "direct" and passed:
        text = message("requests of API clients pass by these filters: {passed}", passed=", ".join(passed))
        yield Finding(
            message("gateway"), "look", text, message("`gateway: {{mode: full}}` in pack.yaml has them apply")
        )


def _voice(webui: OpenWebUI) -> Iterator[Finding]:
    """Whether recordings are transcribed, and whether Open WebUI's microphone gets there."""
    valves = webui.valves("tools", VOICE)
    if valves.get("engine") == "openai_http":
        yield _speech_server(str(valves.get("base_url")), str(valves.get("api_key") or ""))
    if fault := transcription_fault(webui, ROUTE_PATH):
        yield Finding(message("voice"), "wrong", fault, message("see docs/voice.md, and Open WebUI's log"))
    else:
        engine = valves.get("engine") or "faster_whisper"
        yield Finding(message("voice"), "ok", message("{engine} is there, with its model", engine=engine))
    stt = webui.audio()["stt"]
    if not is_ours(stt):
        return
    if stt["OPENAI_API_KEY"] != microphone_valves(webui).get(KEY_VALVE):
        text = message(
            "Open WebUI shows another key than the valve {valve} of the function with the route",
            valve=KEY_VALVE,
        )
        yield Finding(
            message("microphone"), "wrong", text, message("run upload.py with `voice: {{microphone: true}}`")
        )
    elif fault := transcription_fault(webui, MICROPHONE_PATH):
        remedy = message(
            "is its address (Admin Panel → Settings → Audio) one under which Open WebUI reaches itself?"
        )
        yield Finding(message("microphone"), "wrong", fault, remedy)
    else:
        yield Finding(
            message("microphone"), "ok", message("Open WebUI's microphone is transcribed by the pack")
        )


def _speech_server(base_url: str, key: str) -> Finding:
    """Whether a transcription server answers, as seen from here."""
    SECRETS.add(key)
    SECRETS.add_text(base_url)
    url = f"{base_url.rstrip('/').removesuffix('/audio/transcriptions').removesuffix('/v1')}/v1/models"
    shown = shown_address(url)
    try:
        answer = fetch("GET", url, key=key, seconds=TIMEOUT_SECONDS)
    except UnreachableError as error:
        remedy = error.remedy or message(
            "start it, correct `voice.base_url`, or look from a machine that reaches it"
        )
        return Finding(
            message("speech server"),
            "wrong",
            message("no answer at {shown} ({error})", shown=shown, error=error),
            remedy,
        )
    if answer.status in {401, 403}:
        return Finding(
            message("speech server"),
            "wrong",
            message("does not accept the key"),
            message("correct `voice.api_key`"),
        )
    if answer.redirection:
        address, is_same_page = sends_on(answer, "/models")
        return Finding(
            message("speech server"),
            "wrong",
            message("{shown} sends us on to {address}", shown=shown, address=address),
            message("give that") if is_same_page else login_page(message("the speech server")),
        )
    return Finding(message("speech server"), "ok", message("answers at {shown}", shown=shown))


def _version(webui: OpenWebUI) -> Finding:
    version = webui.version
    if version_numbers(version) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        return Finding(
            "Open WebUI",
            "wrong",
            message("is {version}", version=version),
            message("the pack needs {oldest} or later: update it", oldest=oldest),
        )
    if version not in TESTED_VERSIONS:
        return Finding(
            "Open WebUI",
            "look",
            message("is {version}", version=version),
            message("tested with {versions}", versions=message(" and ").join(TESTED_VERSIONS)),
        )
    return Finding("Open WebUI", "ok", message("{version} answers at {url}", version=version, url=webui.url))


def _clock(webui: OpenWebUI) -> Finding:
    """Compare this machine's clock with the server's: sessions and cached answers expire by it."""
    date = webui.answer("GET", "/health", seconds=TIMEOUT_SECONDS).headers.get("Date", "")
    try:
        theirs = email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return Finding(
            message("clock"),
            "look",
            message("the server does not say what time it is"),
            message("does a proxy remove it?"),
        )
    seconds = theirs - time.time()
    if abs(seconds) > CLOCK_SECONDS:
        text = (
            message(
                "the server is {seconds:.0f} s ahead of this machine",
                seconds=seconds,
            )
            if seconds > 0
            else message("the server is {seconds:.0f} s behind this machine", seconds=-seconds)
        )
        return Finding(
            message("clock"),
            "look",
            text,
            message("let both machines take their time from the network (NTP)"),
        )
    return Finding(message("clock"), "ok", message("agrees with this machine's"))


def _twins(models: list[str]) -> Finding:
    """Models that the picker shows twice."""
    text = message(
        "{count} models are listed twice, such as {model} and {router}",
        count=len(models),
        model=models[0],
        router=ROUTER + models[0],
    )
    remedy = message(
        "`router: {{hide_models: true}}` in pack.yaml hides the connections' own, or hide them under Admin "
        "Panel → Settings → Models"
    )
    return Finding(message("model list"), "look", text, remedy)


def _differences(
    config: PackConfig, webui: OpenWebUI | None, pipelines: Pipelines | None
) -> Iterator[Finding]:
    """What an upload would change, and what it could not."""
    plan: Plan = make_plan(config, wanted_plugins(config, []), webui, pipelines)
    for step in plan.steps:
        yield Finding(
            message("pack"),
            "wrong",
            message("not as pack.yaml says: {what}", what=step.what),
            message("run upload.py"),
        )
    yield from map(_as_finding, plan.problems)
    if not plan.steps and not plan.problems:
        yield Finding(
            message("pack"),
            "ok",
            message("plugins, valves, published aliases and grants are as pack.yaml says"),
        )


def _as_finding(problem: Trouble) -> Finding:
    return Finding(problem.subject, "wrong", problem.text, problem.remedy)


def _candidates(config: PackConfig, models: set[str]) -> Iterator[Finding]:
    """Which models of each alias are there; that none is, the plan has said already."""
    for alias in config.aliases:
        missing = [name for name in alias.local_name if "*" not in name and not find_model(name, models)]
        present = [name for name in alias.local_name if name not in missing]
        if missing and present:
            pulls = ", ".join(f"`ollama pull {name}`" for name in missing)
            text = message(
                "{missing} is not there, {present} answers", missing=", ".join(missing), present=present[0]
            )
            yield Finding(
                alias.name, "look", text, message("{pulls}, or take it out of pack.yaml", pulls=pulls)
            )
        elif present:
            yield Finding(alias.name, "ok", message("{present} is there", present=present[0]))


def _agent(node: Endpoint) -> Finding:
    """Whether the machine's agent answers, as seen from here."""
    name = message("agent of {name}", name=node.name or shown_address(node.url))
    shown = shown_address(node.agent)
    (row,) = parse_nodes(node.text(0))
    way = row.agent_way_in
    try:
        url = way.url.rstrip("/") + LOAD_PATH
        report = report_in(_json(fetch("GET", url, headers=way.fixed_headers, seconds=TIMEOUT_SECONDS)))
    except (UnreachableError, ValueError) as error:
        text = message("{shown} does not answer as one ({error})", shown=shown, error=error)
        return Finding(
            name, "wrong", text, message("start scripts/gpu_agent.py there, or take `agent` out of pack.yaml")
        )
    if not report.gpus:
        return Finding(
            name,
            "look",
            message("reports no GPU: {reason}", reason=plain(report.reason)),
            message("see docs/gpu-agent.md"),
        )
    return Finding(name, "ok", message("reports {count} GPUs", count=len(report.gpus)))


def _node(node: Endpoint) -> Finding:
    """Whether a node answers, as seen from here, to what the router sends it."""
    name = message("node {name}", name=node.name or shown_address(node.url))
    if node.url.startswith(DISCOVERED):
        by = "DNS" if node.url.startswith(SRV) else "Kubernetes"
        return Finding(
            name,
            "look",
            message("is found by {by} where Open WebUI runs", by=by),
            message("see its nodes on /ollama-pack"),
        )
    (row,) = parse_nodes(node.text(0))
    url = f"{row.url}/api/version" if node.kind == "ollama" else row.url
    try:
        if node.kind == "ollama":
            found = _json(fetch("GET", url, headers=row.way_in.fixed_headers, seconds=TIMEOUT_SECONDS))
            version = _version_in(found)
        else:
            version = message("{count} models", count=asyncio.run(_models_at(row)))
    except (UnreachableError, ValueError) as error:
        remedy = getattr(error, "remedy", "") or message(
            "start it, correct its address in pack.yaml, or look from a machine that reaches it"
        )
        return Finding(
            name,
            "wrong",
            message("does not answer at {url} ({error})", url=shown_address(url), error=error),
            remedy,
        )
    return Finding(name, "ok", message("{version} at {url}", version=version, url=shown_address(node.url)))


def _version_in(found: Any) -> str:
    """What an Ollama says that it is.

    Raises:
        ValueError: it does not say so.
    """
    if fits(found, {"version": str}):
        return f"Ollama {plain(found['version'], 40)}"
    raise ValueError(message("it answers, but not as {what} does", what="Ollama"))


async def _models_at(row: NodeRow) -> int:
    """How many models an OpenAI-compatible server lists to the router's client, which knows several bases.

    Raises:
        ValueError: it lists none that can be read.
    """
    limits = NodeLimits(TIMEOUT_SECONDS, TIMEOUT_SECONDS, answer_bytes=4 * 2**20)
    async with aiohttp.ClientSession(trust_env=True) as session:
        headers = row.way_in.fixed_headers
        client = OpenAIClient(row.url, session, limits=limits, headers=headers, serves=row.models)
        try:
            return len(await client.tags())
        except NodeError as error:
            raise ValueError(translated(error.plain)) from None


def _json(answer: Answer) -> Any:
    """The JSON of a good answer.

    Raises:
        ValueError: it is none, in words that may be shown.
    """
    if answer.redirection:
        raise ValueError(message("it sends us on to {address}", address=sends_on(answer)[0]))
    if not answer.ok:
        raise ValueError(message("status {status}", status=answer.status))
    try:
        return answer.json()
    except ValueError:
        raise ValueError(message("its answer is not JSON")) from None


def _redis(config: PackConfig, stores: Stores) -> Iterator[Finding]:
    """Whether each Redis answers that pack.yaml names, or that an installed plugin has in its valves."""
    named: Stores = {}
    if config.cache and config.cache.url:
        named[config.cache.url] = ("Redis", message("correct cache.url in pack.yaml"))
    if config.router and config.router.redis_url:
        named.setdefault(config.router.redis_url, ("Redis", message("correct router.redis_url in pack.yaml")))
    for url, (subject, remedy) in (stores | named).items():
        yield redis_finding(url, subject, remedy)


def _stores(webui: OpenWebUI | None, pipelines: Pipelines | None) -> Stores:
    """The Redis of each plugin of the pack that is installed and on, by what its stored valves say."""
    found: Stores = {}
    if webui:
        for plugin, listed in sorted(webui.plugins("functions").items()):
            if plugin in available_plugins()["functions"] and listed["is_active"]:
                where = message("correct `redis_url` of {plugin} (Admin Panel → Functions)", plugin=plugin)
                found |= _redis_urls(webui.valves("functions", plugin), plugin, where)
    if pipelines:
        for plugin in sorted(pipelines.installed().keys() & available_plugins()["pipelines"]):
            where = message(
                "correct `redis_url` of the pipeline {plugin} (Admin Panel → Settings → Pipelines)",
                plugin=plugin,
            )
            found |= _redis_urls(pipelines.valves(plugin), message("pipeline {plugin}", plugin=plugin), where)
    return found


def _redis_urls(valves: dict[str, Any], plugin: str, where: str) -> Stores:
    if valves.get("enabled") is False:
        return {}
    urls = (value for name, value in valves.items() if name.endswith("redis_url"))
    return {
        url: (message("Redis of {plugin}", plugin=plugin), where)
        for url in urls
        if url and isinstance(url, str)
    }


def redis_finding(
    url: str, subject: str = "Redis", correction: str = message("correct cache.url in pack.yaml")
) -> Finding:
    """Whether a store answers, as seen from here: a server, Sentinel's master, or a cluster."""
    secrets = Secrets()
    secrets.add(url)
    secrets.add_text(url)
    SECRETS.add_text(url)
    remedy = message("start it, {correction}, or look from a machine that reaches it", correction=correction)
    try:
        asyncio.run(_ping(url))
    except TimeoutError:
        return Finding(
            subject,
            "wrong",
            message("does not answer within {seconds:g} s", seconds=REDIS_SECONDS),
            remedy,
        )
    except REDIS_FAULTS as error:
        reason = translated(error) if isinstance(error, SettingError) else redis_fault(error)
        return Finding(
            subject,
            "wrong",
            message("does not answer ({reason})", reason=plain(secrets.clean(reason))),
            remedy,
        )
    return Finding(subject, "ok", message("answers"))


async def _ping(url: str) -> None:
    client = redis_client(url)
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            await client.execute_command("PING")
    finally:
        await client.aclose()


def _print(console: Console, findings: list[Finding]) -> None:
    for finding in findings:
        shown = _shown(finding)
        say(console, _MARKS[finding.state], f" {shown['subject']}: {shown['text']}")
        if finding.remedy:
            say(console, f"    → {shown['remedy']}")
    wrong = sum(finding.state == "wrong" for finding in findings)
    say(console, message("{count} wrong", count=wrong) if wrong else message("nothing is wrong"))


if __name__ == "__main__":
    sys.exit(main())
