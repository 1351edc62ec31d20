"""Cutting a stream of bytes into lines of bounded length."""


class LineTooLongError(Exception):
    """A line is longer than it may be. Never leaves `engines/`."""


class LineBuffer:
    """Takes bytes as they come and gives whole lines; never holds more than one line and what came last."""

    def __init__(self, limit: int) -> None:
        """`limit`: the longest line, in bytes."""
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends; empty ones are left out.

        Raises:
            LineTooLongError: one of them is, or what has come of the next.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if any(len(line) > self._limit for line in (*lines, self._rest)):
            raise LineTooLongError
        return [line for line in lines if line.strip()]

    def end(self) -> list[bytes]:
        """What came after the last end of a line, as a line of its own."""
        rest, self._rest = self._rest, b""
        return [rest] if rest.strip() else []
