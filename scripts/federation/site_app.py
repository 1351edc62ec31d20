"""What runs at a site in a round, in Flower's process: reads the site's counts, gives them with noise.

It is called through Flower's SecAgg+: what leaves is masked, and the server sees only the sum of all sites.
`checked` makes sure that the server asks for that and for nothing else.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import requests
from flwr.app import Context, Message
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage

from deploy.shown import message, reader
from federation.counts import Agreement, not_given_yet, read_agreement, round_for, with_given, with_noise
from federation.masking import CLIPPING, MODULUS, QUANTIZATION, threshold_of

FOLDER = Path(os.environ.get("OLLAMA_PACK_FEDERATION", "."))
STATE = "site.json"
ROUTE = "/ollama-pack/calibration"
SECONDS = 30.0


class RefusedError(Exception):
    """The server asks for what was not agreed on, or Open WebUI does not do its part."""


class Site(NumPyClient):  # type: ignore[misc] # Any, where Flower is not installed
    """One Open WebUI with the pack."""

    def __init__(self) -> None:
        self._agreed = read_agreement(FOLDER)
        self._place = json.loads((FOLDER / "open-webui.json").read_text(encoding="utf-8"))
        self._kept = FOLDER / STATE

    def fit(self, _parameters: Any, config: dict[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
        """Give what was not given before. It counts as given from now on, whatever becomes of the round."""
        state, number = self._state(), int(config["round"])
        if number <= state["round"]:
            raise RefusedError(
                message("round {number} was asked for after round {last}", number=number, last=state["round"])
            )
        labels = self._ask("get")["labels"]
        counts = not_given_yet(labels, state["given"], self._agreed)
        sent = with_noise(counts, self._agreed)
        self._keep({"round": number, "given": with_given(state["given"], counts, self._agreed), "sent": sent})
        return [np.array(sent, dtype=np.float64)], 1, {}

    def evaluate(self, parameters: Any, config: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
        """Take the sum of all sites, and hand what the others gave to the site's cache."""
        state, number = self._state(), int(config["round"])
        if number != state["round"] or not state["sent"]:
            raise RefusedError(message("nothing was given in round {number}", number=number))
        every = [round(float(mean) * self._agreed.sites) for mean in parameters[0]]
        others = [total - own for total, own in zip(every, state["sent"], strict=True)]
        self._ask("post", round_for(others, number, self._agreed))
        return 0.0, 1, {}

    def _ask(self, method: str, body: Any = None) -> dict[str, Any]:
        key = Path(self._place["key_file"]).read_text(encoding="utf-8").strip()
        answer = requests.request(
            method,
            self._place["url"].rstrip("/") + ROUTE,
            json=body,
            headers={"Authorization": f"Bearer {key}", "Accept-Language": reader()},
            timeout=SECONDS,
        )
        answer.raise_for_status()
        told: dict[str, Any] = answer.json()
        if told.get("fault"):
            raise RefusedError(message("Open WebUI says: {fault}", fault=told["fault"]))
        return told

    def _state(self) -> dict[str, Any]:
        if not self._kept.exists():
            return {"round": 0, "given": {}, "sent": []}
        state: dict[str, Any] = json.loads(self._kept.read_text(encoding="utf-8"))
        return state

    def _keep(self, state: dict[str, Any]) -> None:
        new = self._kept.with_suffix(".new")
        new.write_text(json.dumps(state), encoding="utf-8")
        new.replace(self._kept)


def checked(order: Message, context: Context, go_on: Callable[[Message, Context], Message]) -> Message:
    """Refuse a server that asks for counts that are not masked, or for less masking than was agreed on."""
    if order.metadata.message_type == "train":
        agreed = read_agreement(FOLDER)
        asked = order.content.config_records.get(RECORD_KEY_CONFIGS)
        if asked is None:
            raise RefusedError(message("the server asks for counts without secure aggregation"))
        _check_stage(dict(asked), agreed)
    elif order.metadata.message_type != "evaluate":
        raise RefusedError(message("the server asks for {kind!r}", kind=order.metadata.message_type))
    return go_on(order, context)


def _check_stage(asked: dict[str, Any], agreed: Agreement) -> None:
    wanted: dict[str, Any] = {}
    if asked.get(Key.STAGE) == Stage.SETUP:
        wanted = {
            Key.SAMPLE_NUMBER: agreed.sites,
            Key.SHARE_NUMBER: agreed.sites,
            Key.THRESHOLD: threshold_of(agreed.sites),
            Key.CLIPPING_RANGE: CLIPPING,
            Key.TARGET_RANGE: QUANTIZATION,
            Key.MOD_RANGE: MODULUS,
            Key.MAX_WEIGHT: 1.0,
        }
    if asked.get(Key.STAGE) == Stage.UNMASK:
        if len(set(asked[Key.ACTIVE_NODE_ID_LIST])) != agreed.sites:
            raise RefusedError(message("not all sites have given their counts"))
        wanted = {Key.DEAD_NODE_ID_LIST: []}  # a site's mask is never taken off alone
    for name, value in wanted.items():
        if asked.get(name) != value:
            raise RefusedError(
                message(
                    "{name}: agreed on {value!r}, and the server says {said!r}",
                    name=name,
                    value=value,
                    said=asked.get(name),
                )
            )


def site(_context: Context) -> Any:
    return Site().to_client()


app = ClientApp(client_fn=site, mods=[checked, secaggplus_mod])
