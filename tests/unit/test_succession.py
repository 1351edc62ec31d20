"""What an instance of a function does when newer code of it runs."""

from types import SimpleNamespace

from ollama_pack.webui.server import take_over


class Instance:
    """Counts how often it is asked to retire."""

    def __init__(self) -> None:
        self.retired = 0

    def retire(self) -> None:
        self.retired += 1


def test_earlier_code_gives_back_what_it_holds() -> None:
    """Would catch connections, threads and files of each earlier code that stay open with every update."""
    app = SimpleNamespace(state=SimpleNamespace())
    one, two, other = Instance(), Instance(), Instance()
    for instance in (one, one, two, two):
        take_over(app, "gpu_router", instance)
    take_over(app, "response_cache_filter", other)
    assert (one.retired, two.retired, other.retired) == (1, 0, 0)
