"""Decisions in words: status lines for people, records for the dashboard."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ollama_pack.base.messages import Message, joined, message
from ollama_pack.routing.decide.assignment import Assignment, ConsideredNode
from ollama_pack.routing.naming import fold_name, is_auto

AT_ONCE_SECONDS = 0.05  # less is shown as no time at all
_WAITS = (5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600, 900, 1800, 3600)  # what an estimate is rounded up to


def answered_line(asked: str, binding: Assignment, seconds: float) -> Message:
    """What stays above an answer: `gpt-4 → llama3:70b · on gpu1 · in 0.8 s`.

    Args:
        asked: the name that was asked for.
        binding: the decision.
        seconds: from the question to the first token.
    """
    time = message("at once") if seconds < AT_ONCE_SECONDS else message("in {time}", time=duration(seconds))
    return joined([_models(asked, binding), message("on {node}", node=binding.node), time])


def waiting_line(asked: str, ahead: int, seconds: float | None, *, loading: bool = False) -> Message:
    """What somebody reads who waits for a node.

    Args:
        asked: the name that was asked for.
        ahead: how many requests come first.
        seconds: how long it may take; None: nobody knows.
        loading: a model is being loaded.
    """
    place = message("{number} ahead of you", number=ahead) if ahead else message("you are next")
    load = message("a model is being loaded") if loading else ""
    time = "" if seconds is None else message("about {time}", time=duration(_rounded(seconds)))
    return joined([asked, message("waiting for a GPU"), place, load, time])


def loading_line(asked: str, binding: Assignment, seconds: float) -> Message:
    """What somebody reads while the model is loaded: how long it has taken, and how long it usually takes."""
    rates = binding.chosen.quote.rates
    usual = duration(rates.load) if rates.load_measured and rates.load > seconds else None
    so_far = duration(seconds) if seconds >= 1 else None
    if usual and so_far:
        time = message("{time} of about {usual}", time=so_far, usual=usual)
    else:
        time = message("about {time}", time=usual) if usual else so_far or Message("")
    load = message("{node} is loading the model", node=binding.node)
    return joined([_models(asked, binding), load, time])


def waited_line(asked: str, seconds: float) -> Message:
    """What stays where the wait has ended without an answer."""
    return joined([asked, message("waited {time} for an answer", time=duration(seconds))])


def reason(binding: Assignment, before: Iterable[Message] = (), *, figures: bool) -> Message:
    """Why this node: `gpu1 has llama3:8b in memory · 82 % of the prompt is cached there · expected in 0.8 s`.

    Args:
        binding: the decision.
        before: what made the choice smaller, such as models that are not installed.
        figures: show those that reveal what others have asked: how much of the prompt the node holds, and the
            time that this saves. They are for admins.
    """
    installed = binding.chosen.node.view.models[binding.model]
    names = {"node": binding.node, "model": binding.model}
    if binding.loads:
        parts = [*before, message("{node} loads {model}", **names)]
    elif installed.remote:
        parts = [*before, message("{node} passes this on to {model}", **names)]
    else:
        parts = [*before, message("{node} has {model} in memory", **names)]
    if is_auto(binding.asked_for):
        parts.append(message("it is the best variant that fits there"))
    if not figures:
        return joined(parts)
    if binding.hit and binding.request.tokens:
        percent = f"{100 * min(1.0, binding.hit / binding.request.tokens):.0f}"
        parts.append(message("{percent} % of the prompt is cached there", percent=percent))
    if not binding.loads or binding.chosen.quote.rates.load_measured:
        seconds = binding.terms.predict_ttft
        at_once = seconds < AT_ONCE_SECONDS
        time = message("expected in {time}", time=duration(seconds))
        parts.append(message("expected at once") if at_once else time)
    return joined(parts)


def duration(seconds: float) -> Message:
    """Such as `0.8 s`, `12 s`, `3 min`."""
    if seconds >= 120:  # noqa: PLR2004 - up to two minutes are shown in seconds
        return message("{minutes} min", minutes=f"{seconds / 60:.0f}")
    return message("{seconds} s", seconds=f"{seconds:.{1 if seconds < 10 else 0}f}")  # noqa: PLR2004 - from ten on one digit less


def _rounded(seconds: float) -> float:
    """An estimate to the next round figure: more would look as if it was known, and change all the time."""
    return next((float(one) for one in _WAITS if seconds <= one), seconds)


def _models(asked: str, binding: Assignment) -> str:
    same = fold_name(asked) == fold_name(binding.model)
    return binding.model if same or not asked else f"{asked} → {binding.model}"


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
