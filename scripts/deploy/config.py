"""pack.yaml: read, checked, and turned into what a deployment should look like."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from deploy.errors import ConfigError
from ollama_pack.aliases.table import AliasRow, AliasTable, parse_table
from ollama_pack.errors import AliasTableError

PUBLIC = "public"
ADMIN = "admin"
GROUP = "group:"

Key = tuple[str | int, ...]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _check_audience(value: str) -> str:
    if value in {PUBLIC, ADMIN} or value.removeprefix(GROUP) not in {value, ""}:
        return value
    raise ValueError(f"{value!r} is no audience: write public, admin or group:NAME")


Names = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
Audience = Annotated[list[Annotated[str, BeforeValidator(_check_audience)]], BeforeValidator(_as_list)]


class Section(BaseModel):
    """A mapping of the file; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid")


class When(Section):
    """The conditions of an alias: see `ollama_pack.aliases.table`."""

    vision: bool = False
    tools: bool = False
    context: int = Field(default=0, ge=0)
    groups: Names | None = None


class Alias(Section):
    """One entry under `models`: the name that clients use, and the local models behind it."""

    name: str
    local_name: Names
    audience: Audience = Field(default=[PUBLIC], min_length=1)
    when: When = When()
    quantization: Names | None = None

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
    url: str
    kind: Literal["ollama", "openai"] = "ollama"
    weight: float = Field(default=1.0, gt=0)
    tier: int = 0
    slots: int | None = Field(default=None, ge=1)
    agent: str | None = None
    key: str | None = None


class ModelProvider(Section):
    type: Literal["ollama"] = "ollama"
    endpoint: str | None = None
    endpoints: list[Endpoint] = []
    models: list[Alias] = []


class Cache(Section):
    url: str = ""
    ttl: int = Field(default=3600, ge=1)
    scope: Literal["user", "group", "global"] = "user"


class Router(Section):
    max_queue: int = Field(default=64, ge=1)
    first_token_timeout: float = Field(default=120, gt=0)


class Voice(Section):
    engine: Literal["faster_whisper", "openai_http", "speech_recognition"] = "faster_whisper"
    model: str = "base"
    language: str = "auto"


class PackConfig(Section):
    """The whole file. Everything is optional."""

    model_provider: ModelProvider = ModelProvider()
    models: list[Alias] = []
    cache: Cache | None = None
    router: Router | None = None
    voice: Voice | None = None
    plugins: list[str] | None = None

    @property
    def aliases(self) -> list[Alias]:
        return [*self.model_provider.models, *self.models]

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

    def audience(self, name: str) -> set[str]:
        """Who may use a published alias: everybody that one of its entries names."""
        return {who for alias in self.aliases if alias.name == name for who in alias.audience}


def load_config(file: Path) -> PackConfig:
    """Read and check a file.

    Raises:
        ConfigError: the file is not there, is not YAML, repeats a key, has an unknown or unfit one,
            or its aliases are no table (duplicates, cycles). Each problem comes with its line and key.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            file, [(0, "file", f"cannot be read ({error.strerror}): name another one")]
        ) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ConfigError(file, [(line, "YAML", str(error.problem))]) from error
    lines = dict(_lines(root)) if root else {}
    if repeated := list(_repeated_keys(root)) if root else []:
        raise ConfigError(file, repeated)
    try:
        config = PackConfig.model_validate(yaml.safe_load(text) or {})
    except ValidationError as error:
        raise ConfigError(file, [_problem(one, lines) for one in error.errors()]) from error
    _check_aliases(file, config, lines)
    return config


def _problem(error: Any, lines: dict[Key, int]) -> tuple[int, str, str]:
    """A pydantic error as `(line, key, sentence)`."""
    key: Key = error["loc"]
    line = next((lines[key[:end]] for end in range(len(key), -1, -1) if key[:end] in lines), 1)
    reason = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        reason = "is not a known key: correct it or take it out"
    elif not isinstance(error["input"], dict | list):
        reason += f" (it is {error['input']!r})"
    return line, ".".join(map(str, key)) or "file", reason


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
            line = name.start_mark.line + 1
            if name.value in first:
                path = ".".join(map(str, (*key, name.value)))
                yield line, path, f"stands in line {first[name.value]} already: keep one of them"
            first.setdefault(name.value, line)
            yield from _repeated_keys(value, (*key, name.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _repeated_keys(value, (*key, index))


def _check_aliases(file: Path, config: PackConfig, lines: dict[Key, int]) -> None:
    """Refuse what the alias table would refuse, in terms of the file."""
    provider = len(config.model_provider.models)
    keys: list[Key] = [("model_provider", "models", index) for index in range(provider)]
    keys += [("models", index) for index in range(len(config.models))]
    for alias, key in zip(config.aliases, keys, strict=True):
        for label, names in (("name", [alias.name]), ("local_name", alias.local_name)):
            if bad := next((name for name in names if set(name) & set(",=[]#\n")), None):
                path = ".".join(map(str, (*key, label)))
                raise ConfigError(file, [(lines[(*key, label)], path, f"{bad!r} has one of , = [ ] # in it")])
    try:
        parse_table(config.alias_text)
    except AliasTableError as error:
        key = keys[error.line - 1]
        problem = (lines[key], ".".join(map(str, key)), f"{error.row!r}: {error.reason}")
        raise ConfigError(file, [problem]) from error
