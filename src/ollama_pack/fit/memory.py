"""How much memory a model takes while it runs: a pure function of its shape and of what it is loaded with.

    weights    the bytes of the tensors that go where the layers go, as the file has them
    KV cache   for each attention layer: slots · n · (key width · b_K + value width · b_V)
               n = context, or on a layer with a sliding window min(context, window + batch)
               width = KV heads · head size;  b = 2 (f16), 34/32 (q8_0) or 18/32 (q4_0) bytes
    state      for each recurrent layer: slots · (convolution + state) · 4 bytes
    projector  the bytes of the vision or audio encoder's tensors
    buffers    what a batch needs while it is evaluated: 4 · batch · its widest rows, and attention masks

Three programs run models, and count differently:

    ollama     Ollama's own engine, for newer architectures. It counts the token table, too, keeps more than
               the window of some, and the value of latent attention a second time.
    runner     llama.cpp inside Ollama, for the others. Ollama estimates its buffers, and none on a CPU.
    llama.cpp  its server, which the newest Ollamas start; the logits of a batch stay outside the GPU.

Sources: Ollama 0.17.4 (fs/ggml/ggml.go `GraphSize`, llm/server.go), llama.cpp (llama-hparams.cpp,
llama-kv-cache.cpp), and what a real Ollama reports. Not counted: what a GPU's driver takes for each process,
0.3 to 0.5 GB; `DRIVER_BYTES` is for plans.
"""

from dataclasses import dataclass, field
from typing import Literal

CacheType = Literal["f16", "q8_0", "q4_0"]
Engine = Literal["ollama", "runner", "llama.cpp"]

# Bytes for each value of the cache: blocks of 32 values have a scale of two bytes.
CACHE_BYTES: dict[str, float] = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
_ROUND_BYTES = {**CACHE_BYTES, "q8_0": 1.0, "q4_0": 0.5}  # as Ollama counts them for its llama.cpp
BATCH = 512  # tokens that are evaluated at once: Ollama's `num_batch`
DRIVER_BYTES = 400 * 2**20  # of GPU memory, for each process that computes there
_PADDING = 256  # tokens; caches hold a multiple of this
# The architectures that Ollama's own engine runs (`OllamaEngineRequired`), and those of them that it runs
# without flash attention unless OLLAMA_FLASH_ATTENTION=1.
_OWN_ENGINE = frozenset({
    "bert", "deepseek2", "deepseekocr", "gemma3", "gemma3n", "gemma4", "gptoss", "gpt-oss", "laguna",
    "llama4", "mistral3", "mllama", "nemotron_h", "nemotron_h_moe", "nemotron_h_omni", "nomic-bert",
    "olmo3", "qwen25vl", "qwen3", "qwen3moe", "qwen35", "qwen35moe", "qwen3next", "qwen3vl",
    "qwen3vlmoe", "glm4moelite", "glmocr", "lfm2", "lfm2moe",
})  # fmt: skip
# Tokens that it keeps on layers with a window, where those are more: all, for Llama 4.
_OWN_WINDOWS = {"gemma4": 4096, "gptoss": 4096, "gpt-oss": 4096, "llama4": 2**40}
_WITHOUT_FLASH = frozenset({"deepseek2", "deepseekocr", "gemma3n", "llama4", "mllama", "qwen25vl"})


@dataclass(frozen=True, slots=True)
class LayerCache:
    """What one layer keeps of what it has read.

    Attributes:
        key, value: numbers for each token; 0: it is no attention layer.
        latent: of the key, those that are the value as well: Ollama's own engine keeps them twice.
        window: tokens that it looks back at most; 0: all of the context.
        state: numbers that it keeps for each slot, however long the prompt is.
    """

    key: int = 0
    value: int = 0
    latent: int = 0
    window: int = 0
    state: int = 0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides how much memory it takes. Sizes are in bytes.

    Attributes:
        architecture: as its metadata names it.
        weights: the layers and the output, which is the token table where the model has no other.
        token_table: the table of token embeddings, which is only looked up and stays with the CPU.
        projector: its vision or audio encoder.
        embedding: numbers for each token between the layers.
        feed_forward: the most numbers for each token inside a layer.
        vocabulary: how many tokens it knows.
        heads: query heads of its widest layer.
        head_size: numbers in a key.
        layers: what its layers cache, and how many there are of each kind.
        longest: the most context that it is made for, in tokens; 0: unknown.
        exact: made from the tensors; otherwise from the metadata or from the size alone.
    """

    architecture: str = ""
    weights: int = 0
    token_table: int = 0
    projector: int = 0
    embedding: int = 0
    feed_forward: int = 0
    vocabulary: int = 0
    heads: int = 0
    head_size: int = 0
    layers: tuple[tuple[LayerCache, int], ...] = field(default=(), repr=False)
    longest: int = 0
    exact: bool = False


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a model is loaded with.

    Attributes:
        context: tokens for each slot.
        slots: requests that it answers at once (`OLLAMA_NUM_PARALLEL`).
        cache: the type of the KV cache (`OLLAMA_KV_CACHE_TYPE`).
        batch: tokens that are evaluated at once.
        flash: with flash attention, whose buffers do not grow with the heads; None: as Ollama decides.
        engine: which program runs it; None: the one that Ollama 0.17 takes for its architecture.
        on_gpu: it runs on a GPU.
    """

    context: int
    slots: int = 1
    cache: CacheType = "f16"
    batch: int = BATCH
    flash: bool | None = None
    engine: Engine | None = None
    on_gpu: bool = True


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes, by what they are for."""

    weights: int
    cache: int
    state: int
    projector: int
    buffers: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.state + self.projector + self.buffers


def memory_needed(shape: ModelShape, options: RunOptions) -> MemoryNeed:
    """The memory that a model takes while it runs with these options."""
    own = "ollama" if shape.architecture in _OWN_ENGINE else "runner"
    engine = options.engine or own
    context = min(options.context, shape.longest) if shape.longest else options.context
    batch = max(1, min(options.batch, context))
    whole = options.slots * context
    if engine != "runner":
        whole = _padded(whole)
    per_value = (_ROUND_BYTES if engine == "runner" else CACHE_BYTES)[options.cache]
    cache, state = 0.0, 0
    for layer, count in shape.layers:
        window, width = layer.window, layer.key + layer.value
        if engine == "ollama":
            window, width = max(window, _OWN_WINDOWS.get(shape.architecture, 0)), width + layer.latent
        kept = min(whole, _padded(options.slots * window + batch)) if layer.window else whole
        cache += count * kept * width * per_value
        state += count * options.slots * layer.state * 4
    weights = shape.weights + (shape.token_table if engine == "ollama" else 0)
    buffers = _buffers(shape, options, engine, whole, batch)
    return MemoryNeed(weights, round(cache), state, shape.projector, buffers)


def _padded(tokens: int) -> int:
    return -(-tokens // _PADDING) * _PADDING


def _buffers(shape: ModelShape, options: RunOptions, engine: str, context: int, batch: int) -> int:
    """The widest moment of a batch, over the context of all slots."""
    if engine == "runner":
        logits = shape.embedding + shape.vocabulary
        attention = 1 + 4 * shape.embedding + context * (1 + shape.heads)
        return 4 * batch * max(attention, logits) if options.on_gpu else 0
    flash = shape.architecture not in _WITHOUT_FLASH if options.flash is None else options.flash
    feeding = 3 * shape.feed_forward + 3 * shape.embedding
    attention = 2 * shape.heads * shape.head_size + 2 * shape.embedding + shape.embedding * flash
    scores = 0 if flash else context * shape.heads
    masks = (6 if engine == "llama.cpp" else 2 * flash) * batch * context if shape.heads else 0
    row = 4 * batch * shape.embedding
    gap = row if engine == "ollama" and masks > 2 * row else 0  # as seen: a mask too large for a hole
    return 4 * batch * max(feeding, attention + scores) + masks + gap
