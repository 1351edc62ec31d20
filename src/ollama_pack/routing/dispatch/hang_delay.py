"""How long a node may honestly be silent before it answers: after that, another one is asked if it can be.

The limit that an admin sets (`first_token_timeout_seconds`) is for the worst case, such as a model that is
loaded from a slow disk. Most requests are far from it, and a node that hangs would cost each of them all of
it. So the first node that a request goes to is suspected earlier, by what is known of it. What is not known
is taken to be as slow as anything that people run, so that no honest load is cut off.
"""

import math

from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.decide.node_timeline import Quote

SUSPICION_SECONDS = 10.0  # in which nothing is wrong, whatever was predicted
SUSPICION_FACTOR = 3.0  # so many times the predicted seconds may still be bad luck
SLOWEST_LOAD = 100e6  # bytes a second: a hard disk, or a busy network share
LEAST_LOAD_LIMIT = 600.0  # seconds for any load that goes on: twice as long as Ollama lets one stand still
LEAST_KNOWN_LIMIT = 120.0  # seconds for a load whose usual time was measured
KNOWN_FACTOR = 20.0  # so many times the measured seconds: the file was in the page cache then, perhaps
SLOWEST_SHARE = 5e6  # bytes a second, with nobody else to ask: a network share at its worst
SLOWEST_PROMPT = 10.0  # tokens a second: a model on a small machine without a GPU


def honest_silence(assignment: Assignment) -> float:
    """Seconds that a node may take to its first token without being suspected; infinite: not to be said.

    All of the prompt counts, as its prefix may be lost, and a load, as the model may have just been unloaded.
    """
    quote = assignment.chosen.quote
    waits = SUSPICION_SECONDS + SUSPICION_FACTOR * assignment.chosen.wait
    return waits + _evaluation(quote, assignment.request.tokens) + _load(quote, assignment)


def longest_load(binding: Assignment, most: float) -> float:
    """Seconds that a node may take for a load that it shows to go on; never more than `most`.

    `/api/ps` shows a load and the first answer after it alike, where Ollama runs a model with its own engine:
    the model is listed, and `expires_at` moves. So a hang in that answer is left when this time is over.
    That is why a load that was measured gets less.
    """
    quote = binding.chosen.quote
    size = binding.chosen.node.view.models[quote.model].size
    if not size:
        return most
    if quote.rates.load_measured:
        slow = SUSPICION_FACTOR * size / SLOWEST_LOAD
        return min(most, max(LEAST_KNOWN_LIMIT, slow, KNOWN_FACTOR * quote.rates.load))
    return min(most, max(LEAST_LOAD_LIMIT, size / SLOWEST_SHARE))


def _evaluation(quote: Quote, tokens: int) -> float:
    return SUSPICION_FACTOR * tokens * quote.pace if quote.rates.learned else tokens / SLOWEST_PROMPT


def _load(quote: Quote, assignment: Assignment) -> float:
    if quote.rates.load_measured:
        return SUSPICION_FACTOR * quote.rates.load
    size = assignment.size
    if size:
        return size / SLOWEST_LOAD
    return 0.0 if quote.reused else math.inf  # an engine that does not tell sizes has its models in memory
