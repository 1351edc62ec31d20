"""What goes wrong when it is asked what fits."""

from ollama_pack.base.messages import message
from ollama_pack.errors import PackError


class GGUFError(PackError, ValueError):
    """A file is not a GGUF file that can be read."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            message("This is not a GGUF file that can be read: {reason}. Download it again.", reason=reason)
        )
        self.reason = reason
