"""Vectors for texts, as an engine gives them."""

from dataclasses import dataclass

from ollama_pack.base.messages import message
from ollama_pack.engines.errors import NodeFaultError

VECTOR_BYTES = 128 * 1024  # that a vector may take in an answer: 6,000 dimensions of some 20 digits


@dataclass(frozen=True, slots=True)
class Vectors:
    """What an engine has made of some texts.

    Attributes:
        vectors: one for each text, in their order.
        tokens: of all texts; 0 where the engine does not count them.
        seconds: of GPU time, without a load; 0 where the engine does not tell.
    """

    vectors: tuple[list[float], ...]
    tokens: int = 0
    seconds: float = 0.0


def vectors_in(node: str, found: object, tokens: object, wanted: int, seconds: float = 0.0) -> Vectors:
    """The vectors in an answer.

    Raises:
        NodeFaultError: there is not one for each text.
    """
    vectors = found if isinstance(found, list) else []
    if len(vectors) != wanted or not all(isinstance(vector, list) and vector for vector in vectors):
        raise NodeFaultError(node, message("gives no vector for some of the texts"))
    return Vectors(tuple(vectors), tokens if isinstance(tokens, int) else 0, seconds)
