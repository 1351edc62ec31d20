"""Simulated nodes in a process of their own, on a fast clock: what they tell is in simulated seconds.

The same nodes as `harness.sim_process` runs, but for the clock: with their own ``speed`` they would tell
durations of the wall, and every constant of the router would have to be scaled.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.routing.clock import run_fast
from harness.sim_command import rows_of, serve
from harness.sim_process import SimulatedNodes, nodes_of

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Shape:
    """The nodes of a setting; the defaults are those of the prototype's table. Seconds are simulated.

    Attributes:
        nodes: how many.
        models: installed on each of them.
        slots: requests that a model answers at once.
        resident: models that fit into memory together.
        load: seconds that loading a model takes.
        prompt_rate: tokens of prompt a second.
        decode_rate: tokens of one answer a second.
    """

    nodes: int = 4
    models: int = 3
    slots: int = 2
    resident: int = 1
    load: float = 4.0
    prompt_rate: float = 700.0
    decode_rate: float = 50.0

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models."""
        return tuple(f"m{number}" for number in range(self.models))

    def rows(self) -> list[str]:
        """As `harness.sim_command` reads them. Tokens go out in bursts: what is measured is the first."""
        models = ",".join(f"{name};size=4GB;load_seconds={self.load};num_ctx=8192" for name in self.names)
        pace = f"prompt_rate={self.prompt_rate} decode_rate={self.decode_rate} write_seconds=0.5"
        room = f"slots={self.slots} max_loaded={self.resident}"
        return [f"gpu{number} models={models} {room} {pace}" for number in range(self.nodes)]


@contextmanager
def fast_nodes(shape: Shape, speed: float) -> Iterator[SimulatedNodes]:
    """Run nodes that live so many times as fast.

    Raises:
        SimulationError: they could not be started.
    """
    folders = [ROOT / folder for folder in (".", "tests", "scripts")]
    with nodes_of("bench.routing.nodes", str(speed), *shape.rows(), folders=folders) as nodes:
        yield nodes


if __name__ == "__main__":
    run_fast(serve(rows_of(sys.argv[2:]), sys.stdout), float(sys.argv[1]))
