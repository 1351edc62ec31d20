"""The valves of the router, wherever it runs."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from ollama_pack.aliases.table import AliasTable, parse_table
from ollama_pack.routing.dispatch.pending_chat import RouterSettings
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.nodes import NodeRow, parse_nodes
from ollama_pack.routing.warm import parse_warm
from ollama_pack.services.pack_valves import PackValves

NODES_NOTE = (
    "A row a line: name address settings, such as: gpu0 http://gpu0:11434 slots=2. Settings: "
    'kind=openai (vLLM and the like), key=…, header="Name: value", slots=…, memory=24GB, weight=…, tier=…, '
    "models=a,b, placement=own (a gateway that chooses the engine), agent=http://gpu0:9400. "
    "dns+srv://_ollama._tcp.example.org as the address: each server that DNS names. "
    "k8s://NAMESPACE/app=ollama:11434: each ready pod with that label. A # starts a comment."
)


class RouterValves(PackValves):
    """What an admin sets, and what it comes to."""

    knows_groups: ClassVar[bool] = True  # whether conditions on the user's groups can be looked at

    nodes: str = Field(default="", description=f"{NODES_NOTE} Empty: Open WebUI's own Ollama connections.")
    aliases: str = Field(
        default="",
        description=(
            "A row a line: alias = model, model [condition, …], as in the alias filter. Each alias is "
            "offered as a model; the first of its models that a node has answers, then the next."
        ),
    )
    strategy: Literal["predicted_ttft", "least_busy", "random"] = Field(
        default="predicted_ttft",
        description="predicted_ttft is the one to use; the others are there to compare with.",
    )
    probe_seconds: float = Field(default=5.0, ge=0.5, le=300, description="Between two looks at a node.")
    first_token_timeout_seconds: float = Field(
        default=120.0,
        ge=1,
        le=3600,
        description=(
            "Seconds that a chat waits for a free node, and then, once the model is loaded, for the first "
            "token. A node that hangs is left earlier, if another can answer."
        ),
    )
    load_timeout_seconds: float = Field(
        default=7200.0,
        ge=10,
        le=86_400,
        description=(
            "The longest that a model may take to load, in seconds. Less for small models: ten minutes, "
            "or what reading them at 5 MB/s takes."
        ),
    )
    max_queue: int = Field(
        default=64, ge=1, le=10_000, description="Chats that may wait; the next one is told so."
    )
    keep_alive: str = Field(
        default="",
        description="How long models stay in memory: 30m, or -1 for ever. Empty: as the nodes have it.",
    )

    warm: str = Field(
        default="",
        description=(
            "Models that are kept in memory, a row a line: llama3:8b = Mon-Fri 07:30-17:00. Several spans "
            "with commas; copies=2 for two nodes; zone=Europe/Berlin, else the server's time. "
            "A # starts a comment."
        ),
    )
    drained: str = Field(
        default="",
        description=(
            "Names of nodes that finish what they have and get nothing new, with spaces between them. The "
            "dashboard sets it."
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
            message = "group= is not known on the Pipelines server: use the gpu_router function for it"
            raise ValueError(message)
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
