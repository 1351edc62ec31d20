"""What all valves of the pack have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ollama_pack.services.refused_valves import note_accepted, note_refused


class PackValves(BaseModel):
    """Valves whose errors reach admins, and do not repeat what was written into them.

    Open WebUI logs the error of a save that failed. Pydantic would put the value into it: a password,
    a key, or a whole table of nodes with theirs.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    def __init__(self, **values: Any) -> None:
        """Validate the values, as Open WebUI does at each save and each request."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            note_refused(type(self), error)
            raise
        note_accepted(self)
