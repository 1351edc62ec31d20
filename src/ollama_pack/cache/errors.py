"""What goes wrong with the cache.

None but `LeaderLostError` reaches a chat: a store that fails is a miss.
"""

from ollama_pack.base.messages import message
from ollama_pack.errors import PackError


class StoreError(PackError):
    """The store did not do what it was asked."""


class StoreDownError(StoreError):
    """The store cannot be reached, or failed."""


class StoreFullError(StoreError):
    """The store takes no more, and still answers.

    Such as Redis at `maxmemory` with `noeviction`, one that cannot save, a replica, or a full disk.
    """


class EntryUnreadableError(PackError):
    """What the store holds is not what was put there: changed, cut off, or of another scope or secret."""


class LeaderLostError(PackError):
    """The generation that an answer was copied from ended without its end, and part of it is shown already.

    Attributes:
        chunks: how many had come.
    """

    def __init__(self, chunks: int) -> None:
        super().__init__(
            message("the answer was shared with another request, whose generation broke off: regenerate it")
        )
        self.chunks = chunks
