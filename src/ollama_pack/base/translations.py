"""The translations of all sentences. GENERATED from locale/ by scripts/package.py."""

TRANSLATIONS: dict[str, dict[str, str]] = {
    "zh-CN": {
    },
}
