"""Simulated nodes in a process of their own: benchmarks and the demo share no interpreter with them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests

from harness.sim_faults import Fault
from local.processes import stop

__all__ = ["SimulatedNodes", "SimulationError", "nodes_of", "simulated_nodes"]

TESTS = Path(__file__).resolve().parent.parent
SECONDS = 10.0


class SimulationError(RuntimeError):
    """The process with the nodes ended before they listened: its output has told why."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the simulated nodes ended with status {status}; standard error says why")
        self.status = status


@dataclass(frozen=True)
class SimulatedNodes:
    """Running nodes, and how to command them.

    Attributes:
        urls: of the nodes, by name.
        control: the address that answers even when a node does not.
        pid: of their process.
    """

    urls: dict[str, str]
    control: str
    pid: int

    def command(self, name: str, *faults: Fault) -> None:
        """Put faults in force at a node."""
        self._ask("POST", f"{name}/faults", [asdict(fault) for fault in faults])

    def clear_faults(self, name: str) -> None:
        self._ask("DELETE", f"{name}/faults")

    def kill(self, name: str) -> None:
        """Switch a node off: its connections are cut and nobody listens."""
        self._ask("POST", f"{name}/kill")

    def start(self, name: str) -> None:
        """Switch a node on again, at the same address and with nothing in memory."""
        self._ask("POST", f"{name}/start")

    def stats(self, name: str, last: int = 0) -> dict[str, Any]:
        """Return totals, what is in memory, and the last records."""
        answer: dict[str, Any] = self._ask("GET", f"{name}/stats?last={last}")
        return answer

    def forget(self, name: str) -> None:
        """Forget the records, as at the beginning of a measurement."""
        self._ask("DELETE", f"{name}/stats")

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        with requests.Session() as session:
            session.trust_env = False
            answer = session.request(method, f"{self.control}/sim/{path}", json=body, timeout=SECONDS)
        answer.raise_for_status()
        return answer.json()


@contextmanager
def simulated_nodes(*rows: str) -> Iterator[SimulatedNodes]:
    """Run the nodes that these rows describe; ``harness.sim_command`` says how.

    Raises:
        SimulationError: they could not be started.
    """
    with nodes_of("harness.sim_command", *rows, folders=(TESTS,)) as nodes:
        yield nodes


@contextmanager
def nodes_of(module: str, *words: str, folders: Iterable[Path]) -> Iterator[SimulatedNodes]:
    """Run a module that says where its nodes listen, as ``harness.sim_command.serve`` does.

    Args:
        module: its name.
        words: what it is started with.
        folders: where it and what it imports are.

    Raises:
        SimulationError: they could not be started.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout  # it is a pipe
        line = process.stdout.readline()
        if not line:
            raise SimulationError(process.wait())
        told = json.loads(line)
        yield SimulatedNodes(told["nodes"], told["control"], process.pid)
    finally:
        stop(process)
        if process.stdout:
            process.stdout.close()
