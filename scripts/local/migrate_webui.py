"""Make Open WebUI's database in DATA_DIR, as its own start does. `webui.py` copies it for each server.

Open WebUI 0.11.2 cannot do it on an empty folder: its migrations run in the middle of an import, and meet it
again ("no such table: config", open-webui#29280). Here the import is finished first.
"""

from alembic import command
from alembic.config import Config
from open_webui.env import OPEN_WEBUI_DIR


def main() -> None:
    import open_webui.config  # noqa: F401, PLC0415 - the import that the migrations must not meet half-done

    settings = Config(OPEN_WEBUI_DIR / "alembic.ini")
    settings.set_main_option("script_location", str(OPEN_WEBUI_DIR / "migrations"))
    command.upgrade(settings, "head")


if __name__ == "__main__":
    main()
