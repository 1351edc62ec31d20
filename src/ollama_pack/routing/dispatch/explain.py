"""Decisions in words: status lines for people, records for the dashboard."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ollama_pack.routing.decide.assignment import Assignment, ConsideredNode
from ollama_pack.routing.naming import is_auto


def loading_line(binding: Assignment, seconds: float) -> str:
    """What somebody reads while the model is loaded: how long it has taken, and how long it usually takes."""
    rates = binding.chosen.quote.rates
    usual = f" of about {_seconds(rates.load)}" if rates.load_measured and rates.load > seconds else ""
    return f"{binding.node} · loads {binding.model} · {_seconds(seconds)}{usual}"


def waiting_line(ahead: int, *, loading: bool = False) -> str:
    """What somebody reads who waits, while a model is loaded perhaps."""
    place = f"{ahead} ahead of you" if ahead else "you are next"
    return f"waiting for a GPU: {place}" + (" · a model is being loaded" if loading else "")


def waited_line(seconds: float) -> str:
    """What stays where the wait has ended without an answer."""
    return f"waited {_seconds(seconds)} for an answer"


def reason(binding: Assignment, *, figures: bool) -> str:
    """Why this node, in a few words: `resident · prefix 82 % · about 0.8 s`.

    Args:
        binding: the decision.
        figures: show those that reveal what others have asked: how much of the prompt the node holds, and the
            time that this saves. They are for admins.
    """
    parts = [f"loads {binding.model}" if binding.loads else "resident"]
    if is_auto(binding.asked_for):
        parts.append(f"{binding.model} is the best that fits" if not binding.loads else "the best that fits")
    if not figures:
        return " · ".join(parts)
    if binding.hit and binding.request.tokens:
        parts.append(f"prefix {min(1.0, binding.hit / binding.request.tokens):.0%}".replace("%", " %"))
    if not binding.loads or binding.chosen.quote.rates.load_measured:
        parts.append(f"about {_seconds(binding.terms.predict_ttft)}")
    return " · ".join(parts)


def status_line(binding: Assignment, *, figures: bool) -> str:
    """What is shown above an answer: `gpu1 · resident · prefix 82 % · about 0.8 s`; see `reason`."""
    return f"{binding.node} · {reason(binding, figures=figures)}"


def _seconds(value: float) -> str:
    if value >= 120:  # noqa: PLR2004 - up to two minutes are shown in seconds
        return f"{value / 60:.0f} min"
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"  # noqa: PLR2004 - one digit less from ten on


@dataclass(slots=True)
class Decision:
    """One decision and what came of it. Shows nothing of the conversation and not who asked.

    Attributes:
        at: Unix time, in seconds.
        node: the node that was chosen.
        model: the model that answers there.
        loads: it had to be loaded.
        hit: tokens of the prompt that the node held.
        tokens: tokens of the prompt, as estimated.
        waited: seconds in the queue.
        predicted: seconds to the first token at the node, as predicted.
        actual: seconds that it took; None: not yet, or never.
        background: it was a background call.
        considered: computes every node that was looked at, with the terms of its cost, when somebody looks.
    """

    at: float
    node: str
    model: str
    loads: bool
    hit: int
    tokens: int
    waited: float
    predicted: float
    actual: float | None
    background: bool
    considered: Callable[[], list[ConsideredNode]] = field(compare=False, repr=False)


def explained(assignment: Assignment, at: float) -> Decision:
    """A decision as it is recorded."""
    return Decision(
        at=at,
        node=assignment.node,
        model=assignment.model,
        loads=assignment.loads,
        hit=assignment.hit,
        tokens=assignment.request.tokens,
        waited=assignment.waited,
        predicted=assignment.terms.predict_ttft,
        actual=None,
        background=assignment.request.background,
        considered=assignment.considered,
    )
