"""Start a server on this machine, wait until it answers, and stop it with everything that it started."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import requests

from deploy.shown import message

STOP_SECONDS = 10.0


class ServerStartError(RuntimeError):
    """A server ended, or did not answer in time, before it was ready.

    Attributes:
        url: the address that was asked.
        log: the file with what the server printed.
    """

    def __init__(self, reason: str, url: str, log: Path) -> None:
        super().__init__(
            message("{reason}. The end of {log}:\n{tail}", reason=reason, log=log, tail=log_tail(log))
        )
        self.url = url
        self.log = log


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on now; another process may still take it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def log_tail(log: Path, lines: int = 20) -> str:
    """Return the last lines of a log file, or a note when there are none."""
    with suppress(FileNotFoundError):
        if tail := log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]:
            return "\n".join(tail)
    return "(empty)"


@contextmanager
def running(
    argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own, its output appended to ``log``; stop all of it at the end.

    Raises:
        OSError: the command, ``cwd`` or the log's folder is not there.
    """
    with log.open("ab") as sink:
        process = subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # children share its group, so that one signal reaches them all
        )
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process of ``running`` and its group: SIGTERM, and SIGKILL for what is left after 10 s."""
    _signal_group(process, signal.SIGTERM)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    finally:  # also when Ctrl-C interrupts the wait
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # the whole group has ended
        os.killpg(process.pid, number)


def wait_until_http(url: str, process: subprocess.Popen[bytes], timeout: float, log: Path) -> None:
    """Return as soon as ``url`` answers with a status below 400.

    Args:
        url: an address of the server that is cheap to ask.
        process: the server; when it ends, waiting ends.
        timeout: seconds.
        log: what the server prints, for the error.

    Raises:
        ServerStartError: the process ended or the time is up; the message has the end of the log.
    """
    deadline = time.monotonic() + timeout
    with requests.Session() as session:
        session.trust_env = False  # a proxy of the environment is not for this machine
        while not _answers(session, url):
            if time.monotonic() >= deadline:
                raise ServerStartError(
                    message("{url} did not answer within {timeout:g} s", url=url, timeout=timeout), url, log
                )
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(0.1)
                raise ServerStartError(
                    message("the server for {url} ended with status {status}", url=url, status=status),
                    url,
                    log,
                )


def _answers(session: requests.Session, url: str) -> bool:
    try:
        return session.get(url, timeout=2).ok
    except requests.RequestException:
        return False
