"""What an OpenAI-compatible engine tells of its models, in the words of `engines/ollama/values.py`.

`/v1/models` has little in common between engines but the ids: vLLM and SGLang add `max_model_len`, llama.cpp
`meta` (size, context, quantization), `architecture` and, where it serves several, whether each is loaded.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.body import object_at
from ollama_pack.engines.model_kinds import listed_for_chat
from ollama_pack.engines.ollama.values import ListedModel, LoadedModel, ModelDetails, ShownModel

_MILLION, _BILLION = 10**6, 10**9
_MODALITIES = {"image": "vision", "audio": "audio"}
NO_CHAT = "embedding"  # the capability of a model that cannot chat, whatever else it is for
_ARCHITECTURE = "served"  # `ShownModel.context_length` looks for the context under the architecture's name
# llama.cpp writes "Q4_K - Medium", "all F32", "IQ2_XXS - 2.0625 bpw"; Ollama Q4_K_M, F32, IQ2_XXS.
_FTYPE = re.compile(r"(?:all |mostly )?([A-Z]+\d\w*)(?: - (Small|Medium|Large)\b)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EngineModel:
    """An entry of `/v1/models`.

    Attributes:
        name: its id.
        others: other names that it answers to.
        engine: who serves it, such as llamacpp or vllm; empty where it is not told.
        loaded: it is in memory, as everything is that is not told to be elsewhere.
        context: tokens that it was started for; 0 where it is not told.
        longest: tokens that the weights are made for; 0 where it is not told.
        size: bytes of the weights; 0 where it is not told.
        parameters: their number; 0 where it is not told.
        quantization: such as Q4_K_M; empty where it is not told.
        capabilities: such as completion and vision; empty where they are not told.
        chats: it is no embedder, reranker or the like, as far as is told.
    """

    name: str
    others: tuple[str, ...] = ()
    engine: str = ""
    loaded: bool = True
    context: int = 0
    longest: int = 0
    size: int = 0
    parameters: int = 0
    quantization: str = ""
    capabilities: tuple[str, ...] = ()
    chats: bool = True

    @property
    def _details(self) -> ModelDetails:
        return ModelDetails(
            parameter_size=_parameter_size(self.parameters), quantization_level=self.quantization
        )

    def listed(self) -> ListedModel:
        """As `/api/tags` would have it. No engine tells a digest."""
        return ListedModel(name=self.name, size=self.size, details=self._details)

    def resident(self) -> LoadedModel:
        """As `/api/ps` would have it. Nobody unloads it."""
        return LoadedModel(name=self.name, size=self.size, context_length=self.context)

    def shown(self, props: Mapping[str, Any]) -> ShownModel:
        """As `/api/show` would have it.

        Args:
            props: what llama.cpp's `/props` tells, of its chat template among others; empty: nothing.
        """
        info = {"general.architecture": _ARCHITECTURE, "general.parameter_count": self.parameters}
        info |= {f"{_ARCHITECTURE}.context_length": self.longest or self.context}
        return ShownModel(capabilities=self._able(props), details=self._details, model_info=info)

    def _able(self, props: Mapping[str, Any]) -> tuple[str, ...]:
        """What it can; empty where that is not told, as by vLLM and SGLang: then whatever is asked is tried.

        Tools count as known where llama.cpp says what its chat template supports. A vLLM that was started
        without a parser for them refuses with a sentence that says so.
        """
        if not self.chats:
            return (NO_CHAT,)
        if not self.capabilities:
            return ()
        modalities = object_at(props, "modalities")
        seen = [ability for ability in _MODALITIES.values() if modalities.get(ability)]
        tools = ["tools"] if object_at(props, "chat_template_caps").get("supports_tools", True) else []
        return tuple(dict.fromkeys((*self.capabilities, *seen, *tools)))


@dataclass(frozen=True, slots=True)
class ServedName:
    """The name by which an engine is asked for a model, and others that are known for it."""

    asked: str
    others: Collection[str] = ()

    def may_be(self, answered: object, served: Mapping[str, Collection[str]]) -> bool:
        """Whether an answer may be of this model, by the name in it. Absent names are believed.

        Engines put a path, a file or a dated version there (`/models/x.gguf`, `gpt-4o-2024-08-06`): one name
        may begin with the other, unless the engine lists what it says as another model.

        Args:
            answered: what the answer says.
            served: each name that the engine lists → all names of that model.
        """
        if not isinstance(answered, str) or not answered:
            return True
        known = {self.asked, *self.others, *served.get(self.asked, ())}
        if answered in known:
            return True
        said = _stem(answered)
        if answered in served:
            return any(said == _stem(name) for name in known)
        return any(said.startswith(stem) or stem.startswith(said) for stem in map(_stem, known))


def _stem(name: str) -> str:
    """A model's name without its folder or publisher, its file's ending, and upper case."""
    return name.lower().rsplit("/", 1)[-1].removesuffix(".gguf").removesuffix(":latest")


def engine_models(answer: Mapping[str, Any]) -> tuple[EngineModel, ...]:
    """Read the answer of `/v1/models`: each name once. Entries without one are passed over, if some have one.

    Raises:
        ValueError: it is not of OpenAI's form.
    """
    entries = answer.get("data")
    if not isinstance(entries, list):
        raise ValueError(message("`data` is not a list"))  # noqa: TRY004 - of the answer, not of an argument
    beside = _capabilities_beside(answer.get("models"))
    found: dict[str, EngineModel] = {}
    for entry in entries:
        if name := _name_in(entry):
            found.setdefault(name, _engine_model(entry, name, beside))
    if entries and not found:
        raise ValueError(message("a model has no `id`"))
    return tuple(found.values())


def nameless_models(answer: Mapping[str, Any]) -> int:
    """How many entries of `/v1/models` are passed over."""
    return sum(not _name_in(entry) for entry in answer.get("data") or ())


def served_context(props: Mapping[str, Any]) -> int:
    """The context in tokens that llama.cpp's `/props` tells; 0: none."""
    return _whole_or_zero(object_at(props, "default_generation_settings").get("n_ctx"))


def _name_in(entry: object) -> str:
    """A model's id, or what some have in its place; empty where there is none."""
    name = (entry.get("id") or entry.get("name")) if isinstance(entry, Mapping) else None
    return name if isinstance(name, str) else ""


def _engine_model(entry: Mapping[str, Any], name: str, beside: Mapping[str, tuple[str, ...]]) -> EngineModel:
    meta, aliases, engine = object_at(entry, "meta"), entry.get("aliases"), entry.get("owned_by")
    return EngineModel(
        name=name,
        others=tuple(map(str, aliases)) if isinstance(aliases, list) else (),
        engine=engine if isinstance(engine, str) else "",
        loaded=object_at(entry, "status").get("value", "loaded") == "loaded",
        context=_whole_or_zero(entry.get("max_model_len")) or _whole_or_zero(meta.get("n_ctx")),
        longest=_whole_or_zero(meta.get("n_ctx_train")),
        size=_whole_or_zero(meta.get("size")),
        parameters=_whole_or_zero(meta.get("n_params")),
        quantization=_quantization(meta.get("ftype")),
        capabilities=_capabilities(entry, beside.get(name, ())),
        chats=listed_for_chat(entry, name),
    )


def _capabilities_beside(models: object) -> dict[str, tuple[str, ...]]:
    """Name → capabilities in the list that llama.cpp gives beside OpenAI's, in Ollama's form."""
    entries = [entry for entry in models if isinstance(entry, Mapping)] if isinstance(models, list) else []
    return {
        str(entry.get("name")): tuple(map(str, able))
        for entry in entries
        if isinstance(able := entry.get("capabilities"), list)
    }


def _capabilities(entry: Mapping[str, Any], beside: tuple[str, ...]) -> tuple[str, ...]:
    inputs = object_at(entry, "architecture").get("input_modalities")
    told = inputs if isinstance(inputs, list) else []
    seen = [_MODALITIES[name] for name in told if name in _MODALITIES]
    base = [ability for ability in beside if ability != "multimodal"] or (["completion"] if told else [])
    return tuple(dict.fromkeys((*base, *seen)))


def _quantization(ftype: object) -> str:
    found = _FTYPE.search(ftype) if isinstance(ftype, str) else None
    return found[1].upper() + (f"_{found[2][0].upper()}" if found[2] else "") if found else ""


def _parameter_size(count: int) -> str:
    """The number as Ollama writes it: 8.0B, 134.52M."""
    if count >= _BILLION:
        return f"{count / _BILLION:.1f}B"
    return f"{count / _MILLION:.2f}M" if count >= _MILLION else ""


def _whole_or_zero(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
