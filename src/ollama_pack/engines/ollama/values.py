"""What a node reports of its models. A field that is missing, null or not of its type has its default."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from ollama_pack.base.messages import message
from ollama_pack.engines.body import json_in
from ollama_pack.engines.ollama.options import RUNNER_OPTIONS
from ollama_pack.engines.ollama.to_ollama import Thinking, thinking_of
from ollama_pack.fit.memory import ModelShape
from ollama_pack.fit.shapes import Tensor, shape_of

_BLOB = re.compile(r"^FROM .*sha256[-:]([0-9a-f]{64})\s*$", re.MULTILINE)
_ADAPTER = re.compile(r"^ADAPTER .*sha256[-:]([0-9a-f]{64})\s*$", re.MULTILINE)
_PARAMETER = re.compile(r"^(\w+)\s+(\S+)\s*$", re.MULTILINE)
_CLOUD_TAG = re.compile(r".*[:-]cloud", re.IGNORECASE)
MOST_PARAMETERS = 10**11  # of a vision encoder
_CLOUD_BYTES = 2**20  # a model with such a tag that is larger than this has weights of its own

_Entry = TypeVar("_Entry", bound="NamedModel")


def is_cloud_name(name: str) -> bool:
    """Whether a name is one of Ollama's cloud, such as `gpt-oss:120b-cloud`."""
    return bool(_CLOUD_TAG.fullmatch(name))


class NodeValue(BaseModel):
    """Base of what is read from a node's answers."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}

    @field_validator("*", mode="wrap")
    @classmethod
    def _odd_is_absent(cls, value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """What is not of its type has its default, too: only what is needed is demanded."""
        try:
            return read(value)
        except ValidationError:
            field = cls.model_fields[str(info.field_name)]
            if field.is_required():
                raise
            return field.get_default(call_default_factory=True)


Bytes = Annotated[int, Field(ge=0)]


class NamedModel(NodeValue):
    """An entry of a list of models. Some gateways have its name under `model` alone, as Open WebUI reads it.

    Attributes:
        name: as the node lists it, with its tag.
    """

    name: str = Field(min_length=1, max_length=1024)

    @model_validator(mode="before")
    @classmethod
    def _model_is_a_name(cls, given: Any) -> Any:
        if isinstance(given, dict) and not isinstance(given.get("name"), str):
            return {**given, "name": given.get("model")}
        return given


class ModelDetails(NodeValue):
    """The make of a model; empty where the node does not tell."""

    family: str = ""
    parameter_size: str = ""
    quantization_level: str = ""


class ListedModel(NamedModel):
    """An entry of `/api/tags`.

    Attributes:
        digest: of the manifest; the same name may have another one on another node.
        size: bytes on disk.
        details: its make.
        remote_model: its name where it really runs, of a cloud model.
        remote_host: where that is.
    """

    digest: str = ""
    size: Bytes = 0
    details: ModelDetails = ModelDetails()
    remote_model: str = ""
    remote_host: str = ""

    @property
    def is_remote(self) -> bool:
        """Whether the node only passes requests on: it is never loaded there, and takes no memory."""
        tagged = is_cloud_name(self.name) and self.size < _CLOUD_BYTES
        return bool(self.remote_model or self.remote_host) or tagged


class LoadedModel(NamedModel):
    """An entry of `/api/ps`: a model in memory, under the name that loaded it.

    Attributes:
        digest: of the manifest.
        size: bytes that it takes.
        size_vram: bytes of those that are in GPU memory.
        context_length: tokens that it was loaded for; 0 where the node is too old to tell.
        expires_at: when it is unloaded if nobody asks; in the past while it works.
    """

    digest: str = ""
    size: Bytes = 0
    size_vram: Bytes = 0
    context_length: Bytes = 0
    expires_at: datetime | None = None

    @field_validator("expires_at")
    @classmethod
    def _with_zone(cls, moment: datetime | None) -> datetime | None:
        return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


class ShownModel(NodeValue):
    """What `/api/show` tells of a model.

    Attributes:
        capabilities: such as completion, tools, vision, thinking.
        details: its make.
        model_info: facts from the weights file, such as `llama.block_count`.
        modelfile: the recipe, which names the weights blob.
        parameters: the recipe's own options, one on a line.
        tensors: of the weights; empty: the node is too old to list them.
        projector_info: facts of a separate vision encoder, such as its `general.parameter_count`.
    """

    capabilities: tuple[str, ...] = ()
    details: ModelDetails = ModelDetails()
    model_info: dict[str, Any] = Field(default_factory=dict)
    modelfile: str = ""
    parameters: str = ""
    tensors: tuple[Tensor, ...] = Field(default=(), repr=False)
    projector_info: dict[str, Any] = Field(default_factory=dict)

    @field_validator("capabilities", mode="before")
    @classmethod
    def _only_texts(cls, given: Any) -> Any:
        return [item for item in given if isinstance(item, str)] if isinstance(given, list) else given

    def shape(self, size: int) -> ModelShape:
        """What decides how much memory it takes, with a vision encoder and adapters in files of their own.

        Args:
            size: bytes of all its files.
        """
        if not self.tensors:
            return shape_of(self.model_info, size=size)
        encoder = self.projector_info.get("general.parameter_count")
        apart = 2 * encoder if isinstance(encoder, int) and 0 < encoder < MOST_PARAMETERS else 0  # 16 bits
        size -= apart
        shape = shape_of(self.model_info, self.tensors, size)
        adapted = max(0, size - sum(one.bytes for one in self.tensors)) if self._adapters else 0
        return replace(shape, weights=shape.weights + adapted, projector=shape.projector + apart)

    @property
    def blob(self) -> str:
        """Digest of the weights and of adapters, which tells what a runner serves; empty: it is not told."""
        found = _BLOB.search(self.modelfile)
        return "+".join([found[1], *self._adapters]) if found else ""

    @property
    def _adapters(self) -> list[str]:
        """Digests of its LoRA adapters: for others Ollama loads the same weights again."""
        return _ADAPTER.findall(self.modelfile)

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
                value = json_in(written)
                # Go writes a million as 1e+06, and 2**20 as 1.048576e+06.
                is_whole = isinstance(value, float) and value.is_integer()
                own[name] = int(value) if is_whole else value
        return own

    @property
    def context_length(self) -> int:
        """The most context, in tokens, that the weights are made for; 0 where it is not told."""
        length = self.model_info.get(f"{self.model_info.get('general.architecture')}.context_length")
        return length if isinstance(length, int) else 0

    @property
    def is_embedder(self) -> bool:
        """Whether its weights make vectors, not text. Ollama itself goes by this."""
        return f"{self.model_info.get('general.architecture')}.pooling_type" in self.model_info

    @property
    def thinking(self) -> Thinking:
        """What `think` it takes."""
        return thinking_of(self.capabilities, self.details.family)


def entries_in(answer: Mapping[str, Any], kind: type[_Entry]) -> tuple[list[_Entry], int]:
    """The entries of a list of models, each name once, and how many were passed over as unreadable.

    Ollama 0.40 lists a model once for each kind of runner.

    Raises:
        ValueError: there is no list.
    """
    listed = answer.get("models")
    if not isinstance(listed, list):
        raise ValueError(message("`models` is not a list"))  # noqa: TRY004 - of the answer, not of an argument
    found: dict[str, _Entry] = {}
    unread = 0
    for entry in listed:
        try:
            model = kind.model_validate(entry)
        except ValidationError:
            unread += 1
        else:
            found.setdefault(model.name, model)
    return list(found.values()), unread
