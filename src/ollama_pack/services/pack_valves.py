"""What all valves of the pack have in common."""

from pydantic import BaseModel, ConfigDict


class PackValves(BaseModel):
    """Valves whose errors do not repeat what was written into them.

    Open WebUI logs the error of a save that failed. Pydantic would put the value into it: a password,
    a key, or a whole table of nodes with theirs.
    """

    model_config = ConfigDict(hide_input_in_errors=True)
