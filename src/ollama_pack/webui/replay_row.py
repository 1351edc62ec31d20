"""The row of the model `response_cache_replay`. Imports `open_webui` when called, not before."""

from ollama_pack.webui.audience import EVERYBODY, grant_forms
from ollama_pack.webui.functions import FunctionState, function_state

REPLAY = "response_cache_replay"


async def share_replay() -> bool:
    """Hide the model from the picker and share it with everybody; False: the function is not there, or off.

    Only where it has no row yet: an admin decides on the one that is there.
    """
    state = await function_state(REPLAY)
    if state.active:
        await _make_row(state)
    return state.active


async def _make_row(state: FunctionState) -> None:
    from open_webui.models.models import ModelForm, Models  # noqa: PLC0415 - see the top of this module

    if await Models.get_model_by_id(REPLAY) is not None:
        return
    form = ModelForm(
        id=REPLAY,
        name="Response cache",
        base_model_id=None,
        meta={"hidden": True, "description": "Gives the answers of the response cache."},
        params={},
        access_grants=grant_forms(EVERYBODY),
        is_active=True,
    )
    await Models.insert_new_model(form, state.owner)  # None: another worker was faster
