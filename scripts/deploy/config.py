"""pack.yaml: read, checked, and turned into what a deployment should look like."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from deploy.errors import ConfigError
from deploy.shown import HIDDEN, SECRETS, Secrets, is_secret_name, message, plain, shown_address, translated
from ollama_pack.aliases.errors import AliasTableError
from ollama_pack.aliases.table import AliasRow, AliasTable, parse_table
from ollama_pack.base.redis import check_redis_url
from ollama_pack.base.tables import TableError
from ollama_pack.budgets.errors import BudgetTableError
from ollama_pack.budgets.table import parse_budgets
from ollama_pack.cache.keyring import check_secret
from ollama_pack.routing.errors import NodeTableError
from ollama_pack.routing.nodes import DISCOVERED, parse_nodes
from ollama_pack.routing.warm import parse_warm
from ollama_pack.services.valves import refusal
from ollama_pack.speech.language import parse_language
from ollama_pack.webui.audience import PUBLIC, is_audience
from ollama_pack.webui.routes import check_route_key

MAX_BYTES = 256 * 1024
MAX_NODES = 20_000  # values, with every `*alias` written out
MAX_DEPTH = 32

Key = tuple[str | int, ...]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | dict) or value is None else [value]


def _check_audience(value: str) -> str:
    if is_audience(value):
        return value
    raise ValueError(
        message("{value} is no audience: write public, admin or group:NAME", value=plain(repr(value)))
    )


def _check_url(value: str) -> str:
    if value.startswith(("http://", "https://")):
        try:
            urlsplit(value).port  # noqa: B018 - raises where it is no number
        except ValueError:
            raise ValueError(
                message("is no address: write it as http://host:11434, the port a number")
            ) from None
        return value
    raise ValueError(
        message("{value!r} is no address: it starts with http:// or https://", value=shown_address(value))
    )


def _check_endpoint(value: str) -> str:
    # the table's reader checks the other kind
    return value if value.startswith(DISCOVERED) else _check_url(value)


def _check_header(value: str) -> str:
    if value.isprintable() and '"' not in value and " #" not in value:
        return value
    raise ValueError(
        message("a header has a quotation mark, a # after a space or a control character: take it out")
    )


def _check_key(value: str) -> str:
    if re.fullmatch(r"[!-~]+", value) and not re.search(r"[#;]", value):
        return value
    raise ValueError(message("has a space or another character that no key has, or is empty: copy it again"))


def _check_microphone(value: object) -> bool | str:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _check_url(value)
    raise ValueError(message("must be true, false, or the address under which Open WebUI reaches itself"))


def _check_language(value: str) -> str:
    parse_language(value)  # a LanguageTagError is a ValueError
    return value


def _check_budget(value: str) -> str:
    if not value.strip() or "\n" in value:
        raise ValueError(
            message("must be one row, such as group=students 120 gpu-minutes/day then=queue-last")
        )
    return value


def _fits(pattern: str, wanted: str) -> AfterValidator:
    """What the alias table's notation cannot hold must not reach it: it would read something else."""

    def check(value: str) -> str:
        if re.fullmatch(pattern, value):
            return value
        raise ValueError(
            message(
                "{value} cannot stand in an alias table: {wanted}",
                value=plain(repr(value), 100),
                wanted=wanted,
            )
        )

    return AfterValidator(check)


ModelName = Annotated[
    str, _fits(r"[^\s,=\[\]#]+", message("it is empty or has a space or one of , = [ ] # in it"))
]
Level = Annotated[str, _fits(r"[\w.-]+", message("it is empty or is more than letters, digits and _ . -"))]
GroupName = Annotated[
    str,
    _fits(
        r"[^\s,|\[\]#]+( [^\s,|\[\]#]+)*",
        message("it is empty or has a stray space or one of , | [ ] # in it"),
    ),
]
Names = Annotated[list[ModelName], BeforeValidator(_as_list), Field(min_length=1)]
Levels = Annotated[list[Level], BeforeValidator(_as_list), Field(min_length=1)]
Groups = Annotated[list[GroupName], BeforeValidator(_as_list), Field(min_length=1)]
Audience = Annotated[
    list[Annotated[str, AfterValidator(_check_audience)]], BeforeValidator(_as_list), Field(min_length=1)
]
EndpointUrl = Annotated[str, AfterValidator(_check_endpoint)]
Url = Annotated[str, AfterValidator(_check_url)]
HeaderText = Annotated[str, AfterValidator(_check_header)]
Language = Annotated[str, AfterValidator(_check_language)]


class Section(BaseModel):
    """A mapping of the file; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class When(Section):
    """The conditions of an alias: see `ollama_pack.aliases.table`."""

    vision: bool = False
    tools: bool = False
    context: int = Field(default=0, ge=0)
    groups: Groups | None = None


class Alias(Section):
    """One entry under `models`: the name that clients use, and the local models behind it."""

    name: ModelName
    local_name: Names
    audience: Audience = [PUBLIC]
    when: When = When()
    quantization: Levels | None = None

    @model_validator(mode="after")
    def _has_an_audience(self) -> Self:
        if "*" in self.name and "audience" in self.model_fields_set:
            raise ValueError(
                message("a name with a star publishes nothing, so it has no audience: take it out")
            )
        return self

    @property
    def text(self) -> str:
        """The entry as a row of the alias table."""
        return AliasRow(
            alias=self.name,
            candidates=tuple(self.local_name),
            images=self.when.vision,
            tools=self.when.tools,
            min_tokens=self.when.context,
            groups=frozenset(self.when.groups or ()),
            quantizations=tuple(self.quantization or ()),
        ).text


class Endpoint(Section):
    """A node that answers chats."""

    name: str = ""
    url: EndpointUrl
    kind: Literal["ollama", "openai"] = "ollama"
    weight: float = Field(default=1.0, ge=0)
    tier: int = 0
    slots: int | None = Field(default=None, ge=1)
    memory: Annotated[str, Field(pattern=r"^[0-9.]+[ ]?[KMGTkmgt]?i?[Bb]?$")] | None = None
    agent: Url | None = None
    key: Annotated[str, AfterValidator(_check_key)] | None = None
    headers: dict[HeaderText, HeaderText] = Field(default={}, repr=False)
    placement: Literal["pack", "own"] = "pack"
    models: list[Annotated[str, Field(pattern=r"^[^\s,]+$")]] = []

    def text(self, number: int) -> str:
        """The endpoint as a row of the router's `nodes` valve; one without a name is called gpu0, gpu1, …."""
        said = self.model_dump(exclude={"name", "url", "headers", "models"}, exclude_defaults=True)
        said |= {"memory": self.memory.replace(" ", "")} if self.memory else {}
        said |= {"models": ",".join(self.models)} if self.models else {}
        settings = "".join(f" {name}={value}" for name, value in said.items())
        settings += "".join(f' header="{name}: {value}"' for name, value in self.headers.items())
        return f"{self.name or f'gpu{number}'} {self.url}{settings}"


class ModelProvider(Section):
    type: Literal["ollama"] = "ollama"
    endpoint: Url | None = None
    endpoints: list[Endpoint] = []
    models: list[Alias] = []


class Cache(Section):
    """The response cache; the keys are valves of `response_cache_filter`, some under shorter names."""

    enabled: bool = True
    url: Annotated[str, AfterValidator(check_redis_url)] = ""
    ttl: int = Field(default=3600, ge=1)
    scope: Literal["user", "group", "global"] = "user"
    when: Literal["always", "deterministic"] = "always"
    max_entry_kb: int = Field(default=256, ge=1)
    similar: Literal["off", "normalised", "semantic"] = "off"
    similar_error: float = Field(default=0.01, ge=0.001, le=0.2)
    similar_embedder: str = ""
    secret: Annotated[str, AfterValidator(check_secret)] = ""


class Router(Section):
    max_queue: int = Field(default=64, ge=1)
    first_token_timeout: float = Field(default=120, gt=0)
    load_timeout: float = Field(default=7200, gt=0)
    strategy: Literal["predicted_ttft", "least_busy", "random"] = "predicted_ttft"
    probe_seconds: float = Field(default=5, ge=0.5)
    keep_alive: str = ""
    redis_url: str = ""
    several_workers: bool = False
    hide_models: bool = False


class Voice(Section):
    """Valves of `voice_transcription`, who may use it, and whether Open WebUI's microphone does.

    `microphone` may be the address under which Open WebUI reaches itself, where that is not the one that
    upload.py knows it by.
    """

    engine: Literal["faster_whisper", "openai_http", "speech_recognition"] = "faster_whisper"
    model: str = ""
    model_dir: str = ""
    base_url: str = ""
    api_key: str = ""
    language: Language = "auto"
    max_megabytes: int = Field(default=200, ge=1)
    max_minutes: int = Field(default=240, ge=1)
    allow_download: bool = False
    allow_cloud: bool = False
    audience: Audience = [PUBLIC]
    microphone: Annotated[bool | str, BeforeValidator(_check_microphone)] = False

    @property
    def valves(self) -> dict[str, Any]:
        """What the file says of the tool's valves."""
        return self.model_dump(exclude_unset=True, exclude={"audience", "microphone"})

    @property
    def says_audience(self) -> bool:
        return "audience" in self.model_fields_set


class Gateway(Section):
    """Valves of `ollama_pack_gateway`."""

    mode: Literal["full", "direct"] = "full"


class Metrics(Section):
    """Who reads `GET /ollama-pack/metrics`: a valve of `ollama_pack_events`."""

    token: Annotated[str, AfterValidator(_check_key), AfterValidator(check_route_key)]


class PackConfig(Section):
    """The whole file. Everything is optional."""

    model_provider: ModelProvider = ModelProvider()
    models: list[Alias] = []
    cache: Cache | None = None
    router: Router | None = None
    voice: Voice | None = None
    budgets: list[Annotated[str, AfterValidator(_check_budget)]] | None = None
    gateway: Gateway | None = None
    metrics: Metrics | None = None
    warm: dict[ModelName, Annotated[str, Field(min_length=1)]] | None = None
    plugins: list[str] | None = None
    pipelines: list[str] | None = None

    @field_validator("warm")
    @classmethod
    def _warm_readable(cls, warm: dict[str, str] | None) -> dict[str, str] | None:
        for model, hours in (warm or {}).items():
            parse_warm(f"{model} = {hours}")  # a WarmTableError is a ValueError
        return warm

    @property
    def aliases(self) -> list[Alias]:
        return [*self.model_provider.models, *self.models]

    @property
    def says_aliases(self) -> bool:
        """Whether the file has a list of models; without one, what a deployment has of them is left alone."""
        return "models" in self.model_fields_set | self.model_provider.model_fields_set

    @property
    def alias_text(self) -> str:
        """The alias table, a row a line, as the plugins' `aliases` valve takes it."""
        return "\n".join(alias.text for alias in self.aliases)

    @property
    def table(self) -> AliasTable:
        return parse_table(self.alias_text)

    @property
    def nodes(self) -> list[Endpoint]:
        """Every endpoint, the article's single one among them."""
        single = self.model_provider.endpoint
        return ([Endpoint(url=single)] if single else []) + self.model_provider.endpoints

    @property
    def router_valves(self) -> dict[str, Any]:
        """The valves of `gpu_router` that the file says something about."""
        valves: dict[str, Any] = {}
        if self.nodes:
            valves["nodes"] = "\n".join(node.text(number) for number, node in enumerate(self.nodes))
        if self.warm is not None:
            valves["warm"] = "\n".join(f"{model} = {hours}" for model, hours in self.warm.items())
        if self.router is not None:
            names = {
                "first_token_timeout": "first_token_timeout_seconds",
                "load_timeout": "load_timeout_seconds",
            }
            said = self.router.model_dump(exclude_unset=True, exclude={"hide_models"})
            valves |= {names.get(name, name): value for name, value in said.items()}
        return valves

    @property
    def cache_valves(self) -> dict[str, Any]:
        """The valves of `response_cache_filter` that the file says something about."""
        names = {"url": "redis_url", "ttl": "ttl_seconds", "when": "cache_when"}
        said = self.cache.model_dump(exclude_unset=True) if self.cache else {}
        return {names.get(name, name): value for name, value in said.items()}

    @property
    def budget_valves(self) -> dict[str, Any]:
        """The valves of `usage_budgets` that the file says something about."""
        if self.budgets is None:
            return {}
        url = (self.router and self.router.redis_url) or (self.cache and self.cache.url) or ""
        return {"budgets": "\n".join(self.budgets)} | ({"redis_url": url} if url else {})

    @property
    def gateway_valves(self) -> dict[str, Any]:
        """The valves of `ollama_pack_gateway` that the file says something about."""
        return self.gateway.model_dump(exclude_unset=True) if self.gateway else {}

    @property
    def events_valves(self) -> dict[str, Any]:
        """The valves of `ollama_pack_events` that the file says something about."""
        return {"metrics_token": self.metrics.token} if self.metrics else {}

    def audience(self, name: str) -> set[str]:
        """Who may use a published alias: everybody that one of its entries names."""
        return {who for alias in self.aliases if alias.name == name for who in alias.audience}


def load_config(file: Path) -> PackConfig:
    """Read and check a file.

    Raises:
        ConfigError: the file is not there, is not YAML, repeats a key, has an unknown or unfit one,
            or its aliases are no table (duplicates, cycles). Each problem comes with its line and key, and
            without any secret.
    """
    root = parse_yaml(file, _read(file))
    lines = dict(_lines(root)) if root else {}
    note_secrets(root)
    repeated = list(_repeated_keys(root)) if root else []  # before `<<` is written out in the tree itself
    content = _values(file, root)
    if repeated:
        raise ConfigError(file, repeated)
    try:
        config = PackConfig.model_validate({} if content is None else content)
    except ValidationError as error:
        raise ConfigError(file, [_problem(one, lines) for one in error.errors()]) from None
    _check_aliases(file, config, lines)
    _check_nodes(file, config, lines)
    _check_budgets(file, config, lines)
    return config


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)  # of a device or a pipe too
        if len(content) <= MAX_BYTES:
            return content.decode("utf-8-sig").replace("\r\n", "\n")
        reason = message(
            "is longer than {limit} KiB, which no pack.yaml is: name another file",
            limit=MAX_BYTES // 1024,
        )
    except OSError as error:
        reason = message("cannot be read ({reason}): name another file", reason=error.strerror)
    except UnicodeDecodeError as error:
        reason = message("is not UTF-8 text (byte {place}): save it as UTF-8", place=error.start)
    raise ConfigError(file, [(1, "file", reason)])


def parse_yaml(file: Path, text: str) -> yaml.Node | None:
    """The file as a tree that knows its lines; None when there is nothing in it.

    Raises:
        ConfigError: it is not YAML, or its anchors make it refer to itself or grow beyond all measure.
    """
    try:
        _refuse_bombs(text)
        root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_growth(root)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        reason = _yaml_reason(error)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        reason = message(
            "the character {character!r} may not stand in YAML: take it out", character=error.character
        )
    except ValueError as error:
        line, reason = 1, translated(error)
    else:
        return root
    raise ConfigError(file, [(line, "YAML", reason)])


def _refuse_bombs(text: str) -> None:
    """Look at the file's events, which takes no stack and no memory, before anything is made of them."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(
                message("it is nested deeper than {limit} levels, which no pack.yaml is", limit=MAX_DEPTH)
            )
        if count > MAX_NODES:
            raise ValueError(
                message("it has more than {limit} values, which no pack.yaml has", limit=MAX_NODES)
            )


def _refuse_growth(root: yaml.Node | None) -> None:
    """Count the values with every `*alias` written out, each node once."""
    sizes: dict[int, int] = {}
    above: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in above:
            line = node.start_mark.line + 1
            raise ValueError(
                message(
                    "the value in line {line} refers to itself (&anchor, *alias): write it out", line=line
                )
            )
        if id(node) not in sizes:
            above.add(id(node))
            sizes[id(node)] = 1 + sum(map(size, _inner_nodes(node)))
            above.remove(id(node))
        return sizes[id(node)]

    if root and size(root) > MAX_NODES:
        raise ValueError(
            message(
                "it has more than {limit} values once its aliases (*name) are written out: use fewer of them",
                limit=MAX_NODES,
            )
        )


def _inner_nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _values(file: Path, root: yaml.Node | None) -> Any:
    """The tree as plain values."""
    if root is None:
        return None
    try:
        return yaml.constructor.SafeConstructor().construct_document(root)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        reason = _yaml_reason(error)
    except (ValueError, TypeError, OverflowError):  # an impossible date, for one
        line, reason = 1, message("a value that only looks like a date or number goes between quotes")
    raise ConfigError(file, [(line, "YAML", reason)])


def _yaml_reason(error: yaml.MarkedYAMLError) -> str:
    """What the parser found, without the text of the file that it quotes: it may be a secret."""

    def shown(found: re.Match[str]) -> str:
        quoted = found[1] or found[2] or ""
        return found[0] if re.fullmatch(r".?|<[a-z ]+>|\\\w{1,5}", quoted) else f"'{HIDDEN}'"

    return re.sub(r"'([^']*)'|\"([^\"]*)\"", shown, plain(error.problem))


def note_secrets(root: yaml.Node | None) -> None:
    """Note every secret of the file, as it is written there: it may be a number, or in a wrong place."""

    def visit(node: yaml.Node, name: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                inner = key.value if isinstance(key, yaml.ScalarNode) else ""
                visit(key, "")
                visit(value, name if is_secret_name(name) else inner)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                visit(item, name)
        elif node.tag not in {"tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"}:
            SECRETS.add_values(node.value, name)

    if root:
        visit(root, "")


# What pydantic words for programmers.
_PLAIN = {
    "extra_forbidden": message("is not a known key: correct it or take it out"),
    "missing": message("is missing: add it"),
    "model_type": message("must hold keys, each with a value"),
    "list_type": message("must be a list"),
    "string_type": message("must be text: put it between quotes"),
    "too_short": message("is empty: name at least one, or take the key out"),
    "invalid_key": message("is not text: put the key between quotes"),
}
# Errors whose value is not shown: there is none, or the reason has it.
_SAYS_VALUE = frozenset({"extra_forbidden", "value_error", "missing", "invalid_key"})
# A value that is shown where a section or a list belongs: not one that may be an address or a key.
_WORD = re.compile(r"[A-Za-z]{1,12}")
_KEY = re.compile(r"[a-z_ -]{0,40}\d{0,5}")
_ADDRESSES = ("url", "endpoint", "agent", "microphone")


def _problem(error: Any, lines: dict[Key, int]) -> tuple[int, str, str]:
    """A pydantic error as `(line, key, sentence)`, with no secret in it."""
    key: Key = error["loc"]
    line = next((lines[key[:end]] for end in range(len(key), -1, -1) if key[:end] in lines), 1)
    value = error["input"]
    secrets = Secrets()
    secrets.add_values(value, "secret" if _is_secret(key) else "")
    reason = secrets.clean(_PLAIN.get(error["type"]) or translated(refusal(error)))
    if error["type"] not in _SAYS_VALUE and not isinstance(value, dict | list):
        reason += message(" (it is empty)") if value is None else _shown_value(error["type"], key, value)
    return line, _path(key), plain(SECRETS.clean(reason), 1000)


def _path(key: Key) -> str:
    """A key as messages name it. What does not look like a key may be a secret in a key's place."""
    parts = (str(part) for part in key)
    return ".".join(part if _KEY.fullmatch(part) else HIDDEN for part in parts) or "file"


def _is_secret(key: Key) -> bool:
    """Whether a place of the file holds a secret, or an address of Redis, which often has a password."""
    names = [str(part) for part in key]
    is_redis = names[0] in {"cache", "router"} and names[-1].endswith("url") if names else False
    return is_redis or any(map(is_secret_name, names))


def _shown_value(kind: str, key: Key, value: object) -> str:
    if _is_secret(key) or str(key[-1] if key else "").endswith(_ADDRESSES):
        return ""
    if kind == "model_type" and not isinstance(value, bool) and not _WORD.fullmatch(str(value)):
        return ""
    if kind.endswith("_type") and isinstance(value, str) and not _WORD.fullmatch(value):
        return ""
    return message(" (it is {value})", value=plain(repr(value), 100))


def _lines(node: yaml.Node, key: Key = ()) -> Iterator[tuple[Key, int]]:
    """Every key of the document with its line, from 1."""
    yield key, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            inner = (*key, str(name.value))
            yield from _lines(value, inner)
            yield inner, name.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*key, index))


def _repeated_keys(node: yaml.Node, key: Key = ()) -> Iterator[tuple[int, str, str]]:
    """YAML lets a later key silently replace an earlier one; here that is an error."""
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for name, value in node.value:
            line, text = name.start_mark.line + 1, str(name.value)
            if text in first:
                yield (
                    line,
                    _path((*key, text)),
                    message("stands in line {line} already: keep one of them", line=first[text]),
                )
            first.setdefault(text, line)
            yield from _repeated_keys(value, (*key, text))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _repeated_keys(value, (*key, index))


def _check_aliases(file: Path, config: PackConfig, lines: dict[Key, int]) -> None:
    """Refuse what the alias table would refuse, in terms of the file."""
    provider = len(config.model_provider.models)
    keys: list[Key] = [("model_provider", "models", index) for index in range(provider)]
    keys += [("models", index) for index in range(len(config.models))]
    try:
        parse_table(config.alias_text)
    except AliasTableError as error:
        raise _row_refused(file, lines, keys[error.line - 1], error) from None


def _check_nodes(file: Path, config: PackConfig, lines: dict[Key, int]) -> None:
    """Refuse what the router's `nodes` valve would refuse, in terms of the file."""
    single: list[Key] = [("model_provider", "endpoint")] if config.model_provider.endpoint else []
    several: list[Key] = [
        ("model_provider", "endpoints", index) for index in range(len(config.model_provider.endpoints))
    ]
    try:
        parse_nodes(config.router_valves.get("nodes", ""))
    except NodeTableError as error:
        key = (single + several)[error.line - 1]
        reason = plain(SECRETS.clean(translated(error.reason)), 1000)
        raise ConfigError(file, [(lines[key], ".".join(map(str, key)), reason)]) from None


def _check_budgets(file: Path, config: PackConfig, lines: dict[Key, int]) -> None:
    """Refuse what the budget table would refuse, in terms of the file."""
    try:
        parse_budgets("\n".join(config.budgets or ()))
    except BudgetTableError as error:
        raise _row_refused(file, lines, ("budgets", error.line - 1), error) from None


def _row_refused(file: Path, lines: dict[Key, int], key: Key, error: TableError) -> ConfigError:
    reason = plain(f"{error.row!r}: {translated(error.reason)}", 1000)
    return ConfigError(file, [(lines[key], ".".join(map(str, key)), reason)])
