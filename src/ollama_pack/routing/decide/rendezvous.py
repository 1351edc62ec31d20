"""Where a chat belongs when nobody remembers: weighted rendezvous hashing, with bounded loads.

Workers that do not hear of one another reckon the same node for the same chat, so that its next turn finds
its prefix there whichever worker it comes to. A node is passed over while it has more than its share.
"""

import math
from functools import lru_cache
from hashlib import blake2b

LOAD_BOUND = 1.25


@lru_cache(maxsize=16384)
def rendezvous_score(chat: str, node: str, weight: float) -> float:
    """How much a chat belongs to a node: the highest score wins, twice as often with twice the weight.

    The score is -w / ln(h) with h uniform in (0, 1) (Schindelhauer and Schomaker, "Weighted Distributed Hash
    Tables", 2005).
    """
    digest = blake2b(f"{node}\\0{chat}".encode(errors="replace"), digest_size=8).digest()
    uniform = (int.from_bytes(digest) + 0.5) / 2**64
    return -weight / math.log(uniform) if weight > 0 else 0.0


def may_take(load: int, total: int, share: float) -> bool:
    """Whether a node may get one more without having more than its share of all, and a quarter.

    The bound is ceil(c * share * (total + 1)) (Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with
    Bounded Loads", 2018).

    Args:
        load: what the node has.
        total: what all nodes have.
        share: of the node in all weights.
    """
    return load + 1 <= math.ceil(LOAD_BOUND * share * (total + 1))
