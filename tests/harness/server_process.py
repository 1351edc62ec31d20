"""The process behind an address of this machine, to look at what it uses."""

import psutil


def server_at(port: int) -> psutil.Process:
    """The process that listens on a port.

    Raises:
        SystemExit: there is none.
    """
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            return psutil.Process(connection.pid)
    raise SystemExit(f"nobody listens on port {port}")
