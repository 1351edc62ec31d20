"""Vectors from the fleet: the node that has the model in memory and the least to do, then the others."""

import logging
from collections import Counter
from collections.abc import Sequence

from ollama_pack.engines.errors import NodeError, RetryableNodeError
from ollama_pack.engines.vectors import Vectors
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.errors import NoAnswerError
from ollama_pack.routing.naming import fold_name
from ollama_pack.routing.probe.catalogue import Catalogue, build_catalogue
from ollama_pack.routing.probe.node_watch import NodeWatch

EMBED_SECONDS = 300.0  # for one request at one node, a load included

embed_log = logging.getLogger(__name__)


class Embedding:
    """Gives texts to nodes. Vectors take no slot from chats: what runs at a node is only counted."""

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()

    def catalogue(self, router: Router) -> Catalogue:
        """The models that can be asked for vectors: those that do nothing else, and those that chat."""
        watches = [(name, watch) for name, watch in router.nodes.items() if watch.is_listed]
        return build_catalogue({name: (*watch.models, *watch.others) for name, watch in watches})

    async def embed(
        self, router: Router, model: str, texts: Sequence[str], dimensions: int = 0
    ) -> tuple[Vectors, str]:
        """The vectors, and the node that made them.

        Args:
            router: whose nodes are asked.
            model: which makes them. Another model's would be useless next to them.
            texts: what to embed.
            dimensions: of the vectors; 0: as many as the model has.

        Raises:
            RoutingError: no node has the model, or none could answer.
            RequestRefusedError: the request has to change.
        """
        failures: dict[str, NodeError] = {}
        for name, watch, own in self._nodes(router, model):
            self._running[name] += 1
            try:
                made = await watch.client.embed(own, texts, seconds=EMBED_SECONDS, dimensions=dimensions)
            except RetryableNodeError as error:
                embed_log.warning("%s failed a request for vectors of %s: %s", name, model, error)
                failures[name] = error
            else:
                return made, name
            finally:
                self._running[name] -= 1
        raise NoAnswerError(failures) if failures else router.no_node([model])

    def _nodes(self, router: Router, model: str) -> list[tuple[str, NodeWatch, str]]:
        """The nodes that have a model, the best first, each with its own name for it."""
        found = []
        for name, watch in router.nodes.items():
            there = (*watch.models, *watch.others)
            own = next((known.name for known in there if fold_name(known.name) == fold_name(model)), None)
            if own is not None and watch.is_listed:
                busy = router.in_flight(name) + self._running[name]
                found.append(((watch.is_gone, not watch.holds(own), busy), (name, watch, own)))
        return [node for _, node in sorted(found, key=lambda one: one[0])]
