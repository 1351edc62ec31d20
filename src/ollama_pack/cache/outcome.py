"""What a request asks of the cache, and what the cache makes of it."""

from dataclasses import dataclass

from ollama_pack.cache.entry import Entry
from ollama_pack.cache.key import AnswerBasis, Slot
from ollama_pack.cache.semantic import Lent
from ollama_pack.cache.similar import Near
from ollama_pack.cache.store import Lease, Running


@dataclass(frozen=True, slots=True)
class Question:
    """A request whose answer may be kept.

    Attributes:
        slot: as `slot_of` gives it.
        scope: as `scope_for` gives it, and as it went into the slot.
        labels: by which the answer can be discarded later, such as `chat:<id>` and `user:<id>`.
        refresh: generate anew and overwrite, as for the button "regenerate".
        answerer: the model that the slot is of: the answer of another one, to which `gpu_router` had to turn,
            is not kept there. Empty: nobody chooses between models.
        needs_usage: only an answer with figures is complete. Open WebUI gives an answer of Ollama that broke
            off the finish reason "stop" all the same; figures it does not invent.
        basis: of the slot, where an answer to the same question in other words may be given; else None.
        lent: what the semantic tier needs of the request; None: it is off.
    """

    slot: Slot
    scope: str
    labels: tuple[str, ...] = ()
    refresh: bool = False
    needs_usage: bool = False
    answerer: str = ""
    basis: AnswerBasis | None = None
    lent: Lent | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """The answer is here.

    Attributes:
        question: that was asked.
        entry: the answer.
        age_seconds: since it was kept, on the store's clock.
        near: the question that the answer was given to, when it had other words.
    """

    question: Question
    entry: Entry
    age_seconds: float
    near: Near | None = None


@dataclass(frozen=True, slots=True)
class Lead:
    """This request is to generate the answer, and others may follow.

    Attributes:
        question: that was asked.
        lease: the right to keep the answer.
        reason: why it was not there.
    """

    question: Question
    lease: Lease
    reason: str


@dataclass(frozen=True, slots=True)
class Follow:
    """Another request generates the answer at this moment.

    Attributes:
        question: that was asked.
        running: the generation.
    """

    question: Question
    running: Running


@dataclass(frozen=True, slots=True)
class Miss:
    """The cache cannot help: generate, and nothing is kept.

    Attributes:
        question: that was asked.
        reason: such as `store slow`.
    """

    question: Question
    reason: str


CacheOutcome = Hit | Lead | Follow | Miss
