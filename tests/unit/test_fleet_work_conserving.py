"""While somebody waits for a model, no free slot of a runner that has it stays empty without a reason."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.virtual_world import MODELS, World, resident, steps, take
from ollama_pack.routing.naming import fold_name


def idle_beside_waiting(world: World) -> list[tuple[str, str]]:
    """The requests that wait, with a node that could begin each of them now."""
    view = world.scheduler.cluster.view()
    return [
        (entry.request.id, node.name)
        for entry in world.scheduler._queue  # noqa: SLF001 - what waits is nobody else's business
        if not entry.request.background
        for node in view.nodes
        if node.name not in entry.tried
        for runner in node.runners
        if fold_name(entry.request.models[0]) in node.models
        if node.models[fold_name(entry.request.models[0])].blob == runner.blob
        if len(runner.ends) < runner.slots and runner.ready_at <= world.now
    ]


ASKS = [("ask", chance) for chance in (0, 1, 296, 1, 1, 0, 0)]
A_FAILURE = [*[("ask", 0)] * 4, ("title", 0), ("title", 1), ("finish", 1), *ASKS, ("fail", 0)]


@settings(deadline=None)
@example(A_FAILURE, 3, 1)  # whoever has failed somewhere is looked at again at once
@given(steps, st.integers(1, 4), st.integers(1, 100))
def test_no_slot_is_free_beside_a_queue(taken: list[tuple[str, int]], slots: int, seed: int) -> None:
    """Would catch a free slot that is kept for a chat that may never come back."""
    world = World(slots=slots, seed=seed)
    for name in ("x", "y"):
        world.scheduler.cluster.probed(name, MODELS, [resident(1.0)])
    for number, (step, chance) in enumerate(taken):
        take(world, number, step, chance)
        world.decide()
        wanting = {name for name, _ in idle_beside_waiting(world)}
        others = [name for name in wanting if not _waits_behind(world, name)]
        assert not others, f"{others} wait beside a free slot"


def _waits_behind(world: World, request_id: str) -> bool:
    """Whether a request ahead was overtaken so often that a node is kept for it, or waits to load there."""
    queue = world.scheduler._queue  # noqa: SLF001 - see above
    entry = queue.get(request_id)
    assert entry
    order = queue.order(world.now)
    return any(other.models != entry.models for other in order[: order.index(entry)])
