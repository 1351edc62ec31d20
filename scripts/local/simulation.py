"""Two simulated nodes for the demo: the ones that the tests use, in a process of their own."""

from collections.abc import Iterator
from contextlib import contextmanager

from harness.sim_process import SimulatedNodes, simulated_nodes

__all__ = ["LARGE", "SMALL", "SimulatedNodes", "simulation"]

SMALL, LARGE = "simulated:8b", "simulated:70b"
_SHAPE = (
    f"models={SMALL};size=2GB;tools,{LARGE};size=8GB;tools slots=2 "
    "load_rate=2000000000 prompt_rate=700 decode_rate=60"
)


@contextmanager
def simulation() -> Iterator[SimulatedNodes]:
    """Run the nodes gpu0 and gpu1, which take one second to load the small model, and four for the large one.

    Raises:
        SimulationError: they could not be started.
    """
    with simulated_nodes(f"gpu0 {_SHAPE}", f"gpu1 {_SHAPE}") as nodes:
        yield nodes
