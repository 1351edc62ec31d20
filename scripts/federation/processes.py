"""Flower's processes of one role, from one that has loaded Flower: loading takes seconds.

Flower starts a process for each message, with the program that the server has sent. Here the process that has
loaded Flower is copied instead, and at a site it runs the site's own program, never one from elsewhere.
"""

import os
import secrets
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from queue import Queue
from typing import Any

from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult

# Their packages have functions of the same names.
superexec: Any = import_module("flwr.supercore.superexec.run_superexec")
run_serverapp: Any = import_module("flwr.superlink.runtime.run_serverapp")
run_clientapp: Any = import_module("flwr.supernode.runtime.run_clientapp")


class Copies:
    """Runs each task in a copy of this process, as long as the main one of the role is there."""

    def __init__(self, main: int, run: Callable[[ExecutionSpec], None]) -> None:
        self._main = main
        self._run = run
        self._own = os.getpid()

    def get_eligible_capacity(self, types: set[Any], **_more: Any) -> tuple[set[Any], set[str]]:
        """There is always room for one more."""
        return types, set()

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Run a task."""
        copied(lambda: self._run(spec))
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Note which copies have ended."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._main:
                    sys.exit(os.waitstatus_to_exitcode(ended[1]))

    def close(self) -> None:
        """End the main process with this one; a copy of this one leaves it alone."""
        if os.getpid() == self._own:
            with suppress(ProcessLookupError):
                os.kill(self._main, signal.SIGTERM)


def copied(run: Callable[[], None]) -> int:
    """A copy of this process that runs something, and ends with this one; its number."""
    own = os.getpid()
    if number := os.fork():
        return number
    status = 1
    try:
        start_parent_process_monitor(own)
        run()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - a copy has nobody above it who would show the reason
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve(  # noqa: PLR0913, PLR0917 - all that the two roles differ in
    main: Callable[[], None],
    argv: list[str],
    address: str,
    secret: Path,
    run: Callable[[Any], None],
    authority: Path | None = None,
) -> None:
    """Run the main process of a role, and its tasks.

    Args:
        main: Flower's command.
        argv: its command line.
        address: where it has its tasks.
        secret: a file that is made here: who has it may take tasks.
        run: does a task.
        authority: the certificate of who has signed the address's; None: it has none.
    """
    secret.unlink(missing_ok=True)
    secret.touch(mode=0o600)
    secret.write_text(secrets.token_hex(32), encoding="ascii")
    sys.argv = [*argv, "--isolation", "process", "--superexec-auth-secret-file", str(secret)]
    executor = Copies(copied(main), run)
    superexec.get_executor = lambda *_args, **_more: executor
    superexec.run_superexec(
        runtime_api_address=address,
        insecure=authority is None,
        root_certificates_path=None if authority is None else str(authority),
        superexec_auth_secret=secret.read_bytes(),
    )


def run_server_task(spec: ExecutionSpec) -> None:
    """Run the server's program, for a round."""
    run_serverapp.run_serverapp(
        runtime_api_address=spec.runtime_api_address,
        log_queue=Queue(),
        token=spec.token,
        insecure=spec.insecure,
        certificates=Path(spec.root_certificates_path).read_bytes() if spec.root_certificates_path else None,
    )


def run_site_task(app: Any, spec: ExecutionSpec) -> None:
    """Run a site's program, for a message."""
    run_clientapp.install_from_fab = lambda *_args, **_more: None
    run_clientapp.get_load_client_app_fn = lambda **_more: lambda *_names: app
    run_clientapp.get_project_dir = lambda *_names: Path()
    run_clientapp.run_clientapp(
        runtime_api_address=spec.runtime_api_address,
        token=spec.token,
        insecure=True,
        runtime_dependency_install=False,
    )
