"""What a node tells about its models. Read leniently: a field that is missing or null has its default."""

import re
from contextlib import suppress
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ollama_pack.engines.body import json_in
from ollama_pack.engines.ollama.to_ollama import Thinking, thinking_of

_BLOB = re.compile(r"^FROM .*sha256[-:]([0-9a-f]{64})\s*$", re.MULTILINE)
_PARAMETER = re.compile(r"^(\w+)\s+(\S+)\s*$", re.MULTILINE)
# What a runner is loaded with besides its context (Ollama's `api.Runner`): another value makes it load again.
RUNNER_OPTIONS = ("main_gpu", "num_batch", "num_gpu", "num_thread", "use_mmap")


class NodeValue(BaseModel):
    """Base of what is read from a node's answers."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}


class ModelDetails(NodeValue):
    """The make of a model; empty where the node does not tell."""

    family: str = ""
    parameter_size: str = ""
    quantization_level: str = ""


class ListedModel(NodeValue):
    """An entry of `/api/tags`.

    Attributes:
        name: as the node lists it, with its tag.
        digest: of the manifest; the same name may have another one on another node.
        size: bytes on disk.
        details: its make.
    """

    name: str
    digest: str = ""
    size: int = 0
    details: ModelDetails = ModelDetails()


class LoadedModel(NodeValue):
    """An entry of `/api/ps`: a model in memory, under the name that loaded it.

    Attributes:
        name: as the node lists it, with its tag.
        digest: of the manifest.
        size: bytes that it takes.
        size_vram: bytes of those that are in GPU memory.
        context_length: tokens that it was loaded for; 0 where the node is too old to tell.
        expires_at: when it is unloaded if nobody asks; in the past while it works.
    """

    name: str
    digest: str = ""
    size: int = 0
    size_vram: int = 0
    context_length: int = 0
    expires_at: datetime | None = None


class ModelList(NodeValue):
    """The answer of `/api/tags`."""

    models: tuple[ListedModel, ...]


class LoadedList(NodeValue):
    """The answer of `/api/ps`."""

    models: tuple[LoadedModel, ...]


class ShownModel(NodeValue):
    """What `/api/show` tells of a model.

    Attributes:
        capabilities: such as completion, tools, vision, thinking.
        details: its make.
        model_info: facts from the weights file, such as `llama.block_count`.
        modelfile: the recipe, which names the weights blob.
        parameters: the recipe's own options, one on a line.
    """

    capabilities: tuple[str, ...] = ()
    details: ModelDetails = ModelDetails()
    model_info: dict[str, Any] = Field(default_factory=dict)
    modelfile: str = ""
    parameters: str = ""

    @property
    def blob(self) -> str:
        """Digest of the weights, which tells what a runner serves; empty where it is not told."""
        found = _BLOB.search(self.modelfile)
        return found[1] if found else ""

    @property
    def num_ctx(self) -> int | None:
        """The context in tokens that the recipe itself asks for."""
        context = self._own_parameters.get("num_ctx")
        return context if isinstance(context, int) else None

    @property
    def runner_options(self) -> tuple[tuple[str, Any], ...]:
        """The other options for its runner that the recipe asks for, sorted by name."""
        own = self._own_parameters
        return tuple((name, own[name]) for name in RUNNER_OPTIONS if name in own)

    @property
    def _own_parameters(self) -> dict[str, Any]:
        """Those of the recipe that are a number, true or false; the last of each name counts."""
        own: dict[str, Any] = {}
        for name, written in _PARAMETER.findall(self.parameters):
            with suppress(ValueError):
                own[name] = json_in(written)
        return own

    @property
    def context_length(self) -> int:
        """The most context, in tokens, that the weights are made for; 0 where it is not told."""
        length = self.model_info.get(f"{self.model_info.get('general.architecture')}.context_length")
        return length if isinstance(length, int) else 0

    @property
    def thinking(self) -> Thinking:
        """What `think` it takes."""
        return thinking_of(self.capabilities, self.details.family)
