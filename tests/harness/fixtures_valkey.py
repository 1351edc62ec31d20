"""Real Valkey servers that the tests of a module share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.valkey import Valkey, redis_program
from local.processes import free_port


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A server on its own."""
    with Valkey(tmp_path_factory.mktemp("valkey")) as valkey:
        yield valkey


@pytest.fixture(scope="module")
def redis_itself(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Redis itself, where the machine has it."""
    program = redis_program()
    if program is None:
        pytest.skip("no redis-server on the PATH: Debian has it in a package of this name")
    with Valkey(tmp_path_factory.mktemp("redis"), program=program) as redis:
        yield redis


@pytest.fixture(params=["valkey", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of the cache, of each kind: the URL of the module's server, or a file's path."""
    if request.param == "sqlite":
        return str(tmp_path / "cache.sqlite3")
    server: Valkey = request.getfixturevalue("valkey")
    with server.client() as client:
        client.flushall()
    return server.url


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
