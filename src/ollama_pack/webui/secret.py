"""Open WebUI's own secret. Imports `open_webui` when called, not before."""


def site_secret() -> str:
    """What Open WebUI signs sessions with: the same in all workers and replicas of a site."""
    from open_webui.env import WEBUI_SECRET_KEY  # noqa: PLC0415 - see the top of this module

    return str(WEBUI_SECRET_KEY or "")
