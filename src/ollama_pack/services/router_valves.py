"""The valves of the router, wherever it runs."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from ollama_pack.aliases.table import AliasTable, parse_table
from ollama_pack.base.messages import message
from ollama_pack.routing.dispatch.pending_chat import RouterSettings
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.nodes import NodeRow, parse_nodes
from ollama_pack.routing.warm import parse_warm
from ollama_pack.services.valves import PackValves

NODES_NOTE = (
    "One node per line: name, address, settings. Example: `gpu0 http://gpu0:11434 slots=2`. "
    'Settings: `kind=openai` (vLLM and similar engines), `key=…`, `header="Name: value"`, '
    "`slots=…`, `memory=24GB`, `weight=…`, `tier=…`, `models=a,b`, `placement=own` (a gateway that chooses "
    "the engine itself), `agent=http://gpu0:9400`. With `dns+srv://_ollama._tcp.example.org` as the "
    "address, every server that DNS names is a node; with `k8s://NAMESPACE/app=ollama:11434`, every ready "
    "pod with that label. `#` starts a comment."
)


class RouterValves(PackValves):
    """What an admin sets, and what it comes to."""

    knows_groups: ClassVar[bool] = True  # whether conditions on the user's groups can be looked at

    nodes: str = Field(
        default="",
        title="Nodes",
        description=f"{NODES_NOTE} Default: empty, which means Open WebUI's own Ollama connections.",
    )
    aliases: str = Field(
        default="",
        title="Aliases",
        description=(
            "One alias per line: `alias = model, model [condition, …]`, as in the alias filter. Each "
            "alias appears as a model. The first of its models that a node has answers; the next ones "
            "are the fallback. Default: empty."
        ),
    )
    strategy: Literal["predicted_ttft", "least_busy", "random"] = Field(
        default="predicted_ttft",
        title="Strategy",
        description=(
            "How a node is chosen. `predicted_ttft` chooses the node that will answer first; "
            "`least_busy` and `random` are there for comparison. Default: `predicted_ttft`."
        ),
    )
    probe_seconds: float = Field(
        default=5.0,
        ge=0.5,
        le=300,
        title="Probe interval, seconds",
        description="How often each node is checked, in seconds. Default: 5.",
    )
    first_token_timeout_seconds: float = Field(
        default=120.0,
        ge=1,
        le=3600,
        title="First token timeout, seconds",
        description=(
            "How long a chat waits for a free node, and then again for the first token once the model is "
            "loaded, in seconds. A node that hangs is given up earlier if another one can answer. "
            "Default: 120."
        ),
    )
    load_timeout_seconds: float = Field(
        default=7200.0,
        ge=10,
        le=86_400,
        title="Load timeout, seconds",
        description=(
            "The longest time that a model may take to load, in seconds. Small models get less: ten "
            "minutes, or the time it takes to read them at 5 MB/s. Default: 7200."
        ),
    )
    max_queue: int = Field(
        default=64,
        ge=1,
        le=10_000,
        title="Queue limit",
        description="How many chats may wait at the same time. Further chats get an error. Default: 64.",
    )
    keep_alive: str = Field(
        default="",
        title="Keep models in memory",
        description=(
            "How long a model stays in memory after its last answer, such as `30m`; `-1` means forever. "
            "Default: empty, which means the node's own setting."
        ),
    )

    warm: str = Field(
        default="",
        title="Keep warm",
        description=(
            "Models that are kept in memory, one per line. Example: `llama3:8b = Mon-Fri 07:30-17:00`. "
            "Separate several spans with commas. `copies=2` keeps it on two nodes. `zone=Europe/Berlin` sets "
            "the time zone, which is the server's otherwise. `#` starts a comment. Default: empty."
        ),
    )
    drained: str = Field(
        default="",
        title="Drained nodes",
        description=(
            "Names of nodes that finish their requests and get no new ones, separated by spaces. The "
            "dashboard sets this. Default: empty."
        ),
    )

    @field_validator("warm")
    @classmethod
    def _warm_readable(cls, text: str) -> str:
        parse_warm(cls.lines(text))
        return text

    @field_validator("nodes")
    @classmethod
    def _nodes_readable(cls, text: str) -> str:
        parse_nodes(cls.lines(text))  # its error reaches the admin as the valve's, with row and reason
        return text

    @field_validator("aliases")
    @classmethod
    def _aliases_readable(cls, text: str) -> str:
        if parse_table(cls.lines(text)).uses_groups and not cls.knows_groups:
            reason = message(
                "group= is not known on the Pipelines server: use the gpu_router function for it"
            )
            raise ValueError(reason)
        return text

    @classmethod
    def lines(cls, text: str) -> str:
        """The rows of a valve, each on a line of its own."""
        return text

    @property
    def rows(self) -> tuple[NodeRow, ...]:
        return parse_nodes(self.lines(self.nodes))

    def look_after(self, router: Router) -> None:
        """Let a router do what an admin wants beside chats."""
        router.upkeep.drain(self.drained.replace(",", " ").split())
        router.upkeep.keep(parse_warm(self.lines(self.warm)))

    @property
    def table(self) -> AliasTable:
        return parse_table(self.lines(self.aliases))

    @property
    def settings(self) -> RouterSettings:
        return RouterSettings(
            self.strategy,
            self.probe_seconds,
            self.first_token_timeout_seconds,
            self.max_queue,
            self.keep_alive,
            load_seconds=self.load_timeout_seconds,
        )
