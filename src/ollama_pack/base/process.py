"""One object for all plugins of a process, which are files that share no code.

Only objects of the standard library and of faster_whisper may be kept, because a plugin that is updated while
the server runs leaves objects of its older classes behind.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")

_PLACE = "_ollama_pack_speech_state"  # never a module that can be imported


def process_wide(name: str, make: Callable[[], T]) -> T:
    """The one object of that name in this process, made at the first call.

    Args:
        name: of the object.
        make: makes it; may be called once too often, when two threads are the first together.
    """
    state = sys.modules.setdefault(_PLACE, ModuleType(_PLACE))
    kept: T = vars(state).setdefault(name, make())
    return kept
