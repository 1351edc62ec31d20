"""The `nodes` valve: a row a line, read once.

For example::

    gpu0  http://gpu0:11434                       # an Ollama
    gpu1  http://gpu1:11434  slots=4 weight=2     # OLLAMA_NUM_PARALLEL=4, and twice the work among equals
    gpu2  http://gpu2:11434  memory=24GB          # of its GPUs, where no agent reports it
    old   http://old:11434   tier=1               # only when the others are slow to answer
    vllm  http://vllm:8000   kind=openai key=…    # any OpenAI-compatible engine
    far   https://me:password@far/ollama  header="X-Team: blue"   # behind a gateway
    k8s   http://router:80   kind=openai placement=own models=qwen3   # a gateway that places requests itself
    pool  dns+srv://_ollama._tcp.example.org                # each server that DNS names
    pods  k8s://default/app=ollama:11434                    # each ready pod that has these labels
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, Self, get_args
from urllib.parse import urlsplit

from ollama_pack.base.messages import Message, message, said_by
from ollama_pack.base.tables import table_rows
from ollama_pack.engines.model_ids import usable_id
from ollama_pack.engines.way_in import Header, WayIn, split_login
from ollama_pack.routing.errors import NodeTableError

NodeKind = Literal["ollama", "openai"]
PlacedBy = Literal["pack", "own"]

MAX_NODES = 1024
MAX_TIER = 9
SRV = "dns+srv://"
PODS = "k8s://"
DISCOVERED = (SRV, PODS)  # addresses that stand for several servers
MAX_WEIGHT = 100.0
MAX_DECLARED_SLOTS = 1024

_NODE_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
_NODE_PODS = re.compile(r"k8s://[a-z0-9-]{1,63}/[A-Za-z0-9_./=!,-]{1,500}:[1-9][0-9]{0,4}")
_NODE_SRV = re.compile(r"dns\+srv://(?:[0-9.]+(?::[0-9]{1,5})?/)?(?:[\w-]{1,63}\.)+[\w-]{1,63}\.?")
_NODE_SECRET = re.compile(r"(//(?=.*@)|\?)(?:.*@|\S+)")  # of an address: its login, or what follows a ?
_NODE_WORD = re.compile(r'header="[^"]*"|\S+')
_NODE_HEADER = re.compile(r"([!#$%&'*+.^_`|~\w-]+):[ \t]*(.*?)[ \t]*", re.ASCII)
_NODE_SETTINGS = "kind, weight, tier, slots, memory, agent, key, header, placement, models"
_BYTES = {"": 1, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
MAX_MEMORY = 2**50


@dataclass(frozen=True, slots=True)
class Listing:
    """Which of a server's models are offered, and under which names.

    Attributes:
        prefix: put before each name, with a dot; empty: none.
        only: the server's names of those that are offered; empty: all.
    """

    prefix: str = ""
    only: frozenset[str] = frozenset()

    def offered(self, model: str) -> str | None:
        """The name under which a model of the server is offered; None: it is not."""
        if self.only and model not in self.only and model not in map(usable_id, self.only):
            return None
        return f"{self.prefix}.{model}" if self.prefix else model


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node, as the admin describes it.

    Attributes:
        name: what status lines and logs call it.
        url: its address, without a slash at the end and without a login.
        kind: what it speaks.
        weight: how much of the work it gets beside equals; 0: it finishes what it has and gets nothing new.
        tier: nodes of a higher tier answer when those of lower ones are slow to.
        slots: how many requests a model answers at once there; None: to be learned.
        agent: address of its `gpu_agent`, with its login if it has one; empty: none.
        key: sent as a bearer token; empty: none. In no message.
        placement: who chooses the engine that answers. "own": the node is a gateway in front of several
            engines (vLLM's production stack, llm-d, Ray Serve LLM, SGLang's router). It gets requests at
            once, up to `slots`, and a key of the conversation that helps it to choose.
        models: that it serves, where its `/v1/models` does not list them; empty: those that it lists.
        line: its number in the text, from 1.
        login, headers, auth, cookies: as in `WayIn`. In no message.
        listings: what of its models is offered; none: all, under their own names.
        memory: bytes that its GPUs have; 0: to be learned from its agent, or from what it has in memory.
    """

    name: str
    url: str
    kind: NodeKind = "ollama"
    weight: float = 1.0
    tier: int = 0
    slots: int | None = None
    agent: str = field(default="", repr=False)
    key: str = field(default="", repr=False)
    placement: PlacedBy = "pack"
    models: tuple[str, ...] = ()
    line: int = field(default=0, compare=False)
    listings: tuple[Listing, ...] = ()
    login: str = field(default="", repr=False)
    headers: tuple[Header, ...] = field(default=(), repr=False)
    auth: str = ""
    cookies: bool = False
    memory: int = 0

    @property
    def way_in(self) -> WayIn:
        """How it lets the router in."""
        return WayIn(self.url, self.key, self.login, self.headers, self.auth, self.cookies)

    @property
    def agent_way_in(self) -> WayIn:
        """How its agent lets us in: by a login of its own, else as the node where both have one gateway."""
        url, login = split_login(self.agent)
        node, agent = urlsplit(self.url), urlsplit(url)
        if not login and (node.scheme, node.netloc) == (agent.scheme, agent.netloc):
            return replace(self.way_in, url=url)
        return WayIn(url, login=login)

    def entered_by(self, way: WayIn) -> Self:
        """The node with another way in."""
        found = {name: getattr(way, name) for name in ("url", "key", "login", "headers", "auth", "cookies")}
        return replace(self, **found)


@lru_cache(maxsize=16)  # valves are validated anew on every request, and nearly always hold the same text
def parse_nodes(text: str) -> tuple[NodeRow, ...]:
    """Read the nodes from text: a row a line, `#` starts a comment, empty lines are skipped.

    Raises:
        NodeTableError: naming the row and what is wrong with it.
    """
    rows: list[NodeRow] = []
    for line, written in table_rows(text):
        try:
            rows.append(_parse_node(line, written))
            _refuse_repeated(rows)
        except ValueError as fault:
            raise NodeTableError(line, *_without_secrets(written, said_by(fault))) from None
    return tuple(rows)


def _without_secrets(written: str, fault: Message) -> tuple[str, Message]:
    """A row and what is wrong with it, without passwords, keys and headers, also with a space in them."""
    address, *secret = re.split(r"(\b(?:key|header)=)", _NODE_SECRET.sub(r"\1…", written), maxsplit=1)
    after = secret[1].split() if secret else []
    settings = [word if word.partition("=")[0] in _SHOWN_SETTINGS else "…" for word in after]
    row = f"{address}{''.join(secret[:1])}{' '.join(settings)}"
    quoted = {name for name in fault.values if f"{{{name}!r}}" in fault.template}
    hidden = {name: "…" for name in quoted if str(fault.values[name]) not in row}
    return row, fault.with_values(hidden)


def _parse_node(line: int, written: str) -> NodeRow:
    """Read a row; here and below a ValueError says what is wrong with it."""
    name, *rest = _NODE_WORD.findall(written)
    if not rest or "://" not in rest[0]:
        raise ValueError(
            message("write it as `gpu0 http://gpu0:11434 slots=2`: a name, an address, settings")
        )
    if not _NODE_NAME.fullmatch(name):
        raise ValueError(
            message(
                "{name!r} cannot be a name: use up to 64 letters, digits, dots, dashes, underscores",
                name=name,
            )
        )
    address, *settings = rest
    if address.startswith(DISCOVERED):
        url, login = _several(address), ""
    else:
        url, login = split_login(_address(address))
    row = NodeRow(name, url, line=line, login=login, **_settings(settings))
    if row.login and row.key:
        raise ValueError(message("it has a password in its address and a key=…: take one of them out"))
    if row.kind != "openai" and (row.placement == "own" or row.models):
        setting = "models=" if row.models else "placement=own"
        raise ValueError(
            message(
                "{setting} is for OpenAI-compatible servers: add kind=openai, or leave it out",
                setting=setting,
            )
        )
    return replace(row, slots=MAX_DECLARED_SLOTS) if row.placement == "own" and row.slots is None else row


def _settings(written: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for setting in written:
        name, equals, value = setting.partition("=")
        if not equals or name not in _READERS:
            raise ValueError(
                message(
                    "unknown setting {name!r}: the known ones are {known}",
                    name=name,
                    known=_NODE_SETTINGS,
                )
            )
        if name == "header":
            found["headers"] = (*found.get("headers", ()), _header(value))
            continue
        if name in found:
            raise ValueError(message("{name}= is set twice", name=name))
        found[name] = _READERS[name](value)
    return found


def _header(value: str) -> Header:
    found = _NODE_HEADER.fullmatch(value.strip('"'))
    if found is None or not found[2].isprintable():
        raise ValueError(message('header= needs a name and a value, as in header="X-Team: blue"'))
    return found[1], found[2]


def _address(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not value.isprintable():
        raise ValueError(message("{value!r} is no address: write it as http://gpu0:11434", value=value))
    if parts.query or parts.fragment:
        raise ValueError(
            message("{value!r} has something after the path: write it as http://gpu0:11434", value=value)
        )
    return value.rstrip("/")


def _several(value: str) -> str:
    if value.startswith(SRV) and not _NODE_SRV.fullmatch(value):
        raise ValueError(
            message(
                "{value!r} is no name of a service: write it as dns+srv://_ollama._tcp.example.org",
                value=value,
            )
        )
    if value.startswith(PODS) and not _NODE_PODS.fullmatch(value):
        raise ValueError(
            message(
                "{value!r} does not select pods: write it as k8s://NAMESPACE/app=ollama:11434", value=value
            )
        )
    return value


def _kind(value: str) -> NodeKind:
    for kind in get_args(NodeKind):
        if value == kind:
            return kind  # type: ignore[no-any-return] # get_args tells no types
    raise ValueError(
        message(
            "kind={value} is unknown: the known ones are {known}",
            value=value,
            known=", ".join(get_args(NodeKind)),
        )
    )


def _placement(value: str) -> PlacedBy:
    for placement in get_args(PlacedBy):
        if value == placement:
            return placement  # type: ignore[no-any-return] # get_args has no types
    raise ValueError(
        message(
            "placement={value} is unknown: the known ones are {known}",
            value=value,
            known=", ".join(get_args(PlacedBy)),
        )
    )


def _models(value: str) -> tuple[str, ...]:
    names = tuple(value.split(","))
    if not all(names) or not value.isprintable():
        raise ValueError(message("models= needs names separated by commas, not {value!r}", value=value))
    return names


def _weight(value: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= MAX_WEIGHT:
        raise ValueError(
            message(
                "weight= needs a number from 0 to {most:g}, not {value!r}",
                most=MAX_WEIGHT,
                value=value,
            )
        )
    return weight


def _memory(value: str) -> int:
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([KMGT]?i?B?)", value, re.IGNORECASE)
    unit = found[2].upper() if found else "?"
    scale = _BYTES.get(unit) or _BYTES.get(f"{unit}B", 0)
    size = round(float(found[1]) * scale) if found else 0
    if not 10**8 <= size <= MAX_MEMORY:
        raise ValueError(message("memory= needs a size such as 24GB or 80GiB, not {value!r}", value=value))
    return size


def _whole_number(setting: str, least: int, most: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if re.fullmatch(r"[0-9]{1,6}", value) and least <= int(value) <= most:
            return int(value)
        raise ValueError(
            message(
                "{setting}= needs a whole number from {least} to {most}, not {value!r}",
                setting=setting,
                least=least,
                most=most,
                value=value,
            )
        )

    return read


def _secret(value: str) -> str:
    if not value:
        raise ValueError(message("key= is empty: leave it out, or write the token after it"))
    return value


_READERS: dict[str, Callable[[str], Any]] = {
    "kind": _kind,
    "weight": _weight,
    "tier": _whole_number("tier", 0, MAX_TIER),
    "slots": _whole_number("slots", 1, MAX_DECLARED_SLOTS),
    "memory": _memory,
    "agent": _address,
    "key": _secret,
    "header": _header,
    "placement": _placement,
    "models": _models,
}


_SHOWN_SETTINGS = _READERS.keys() - {"key", "header"}


def _refuse_repeated(rows: list[NodeRow]) -> None:
    *before, row = rows
    for other in before:
        if row.name == other.name:
            raise ValueError(
                message(
                    "row {line} is already called {name!r}: give it another name",
                    line=other.line,
                    name=row.name,
                )
            )
        if row.url == other.url:
            raise ValueError(
                message(
                    "row {line} ({name}) has the same address: one row for each node",
                    line=other.line,
                    name=other.name,
                )
            )
    if len(rows) > MAX_NODES:
        raise ValueError(message("at most {limit} nodes can be configured", limit=MAX_NODES))
