"""Real Valkey servers that the tests of a module share."""

from collections.abc import Iterator

import pytest

from harness.valkey import Valkey
from local.processes import free_port


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A server on its own."""
    with Valkey(tmp_path_factory.mktemp("valkey")) as valkey:
        yield valkey


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A cluster of one: keys of different slots in one command are refused as they are in a large one."""
    options = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
    with Valkey(tmp_path_factory.mktemp("cluster"), options) as valkey:
        with valkey.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                pass
        yield valkey
