"""How counts are masked, the same at the server and at each site: Flower's SecAgg+ with these numbers.

Whole numbers pass unchanged: the step between two numbers, 2 x CLIPPING / QUANTIZATION, is a part of one.
"""

CLIPPING = 2048.0
QUANTIZATION = 2**22
MODULUS = 2**32
MOST_SITES = MODULUS // QUANTIZATION  # else a sum might go round


def threshold_of(sites: int) -> int:
    """How many sites it takes to take masks off: more than half of them."""
    return sites // 2 + 1
