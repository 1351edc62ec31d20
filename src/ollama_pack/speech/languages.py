"""The languages that Whisper knows: its codes, and its English names, which OpenAI's API answers with."""

_TABLE = """
af afrikaans, am amharic, ar arabic, as assamese, az azerbaijani, ba bashkir, be belarusian, bg bulgarian,
bn bengali, bo tibetan, br breton, bs bosnian, ca catalan, cs czech, cy welsh, da danish, de german, el
greek, en english, es spanish, et estonian, eu basque, fa persian, fi finnish, fo faroese, fr french, gl
galician, gu gujarati, ha hausa, haw hawaiian, he hebrew, hi hindi, hr croatian, ht haitian creole, hu
hungarian, hy armenian, id indonesian, is icelandic, it italian, ja japanese, jw javanese, ka georgian, kk
kazakh, km khmer, kn kannada, ko korean, la latin, lb luxembourgish, ln lingala, lo lao, lt lithuanian, lv
latvian, mg malagasy, mi maori, mk macedonian, ml malayalam, mn mongolian, mr marathi, ms malay, mt maltese,
my myanmar, ne nepali, nl dutch, nn nynorsk, no norwegian, oc occitan, pa punjabi, pl polish, ps pashto, pt
portuguese, ro romanian, ru russian, sa sanskrit, sd sindhi, si sinhala, sk slovak, sl slovenian, sn shona,
so somali, sq albanian, sr serbian, su sundanese, sv swedish, sw swahili, ta tamil, te telugu, tg tajik, th
thai, tk turkmen, tl tagalog, tr turkish, tt tatar, uk ukrainian, ur urdu, uz uzbek, vi vietnamese, yi
yiddish, yo yoruba, yue cantonese, zh chinese
"""

UNKNOWN_LANGUAGE = "und"  # as BCP 47 has it

# Whisper's code → its name.
LANGUAGES = dict(row.split(" ", 1) for row in " ".join(_TABLE.split()).split(", "))

# BCP 47 has other codes for some of them: macrolanguages and their members, codes that were replaced.
LANGUAGE_ALIASES = {
    "cmn": "zh",
    "fil": "tl",
    "in": "id",
    "iw": "he",
    "ji": "yi",
    "jv": "jw",
    "mo": "ro",
    "nb": "no",
    "prs": "fa",
    "sh": "sr",
    "arb": "ar",
    "swh": "sw",
    "zsm": "ms",
}
# Other English names that Whisper takes (`TO_LANGUAGE_CODE` in its tokenizer).
LANGUAGE_NAMES = {
    "burmese": "my",
    "castilian": "es",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "mandarin": "zh",
    "moldavian": "ro",
    "moldovan": "ro",
    "panjabi": "pa",
    "pushto": "ps",
    "sinhalese": "si",
    "valencian": "ca",
}
_OWN_CODES = {"jw": "jv"}  # Whisper's code that BCP 47 does not have → the one that it has


def language_code(name: str) -> str | None:
    """Whisper's code for a code or an English name in any case, as servers answer it; None: there is none."""
    name = name.strip().lower()
    if name in LANGUAGES:
        return name
    return code_of_name(name) or LANGUAGE_ALIASES.get(name)


def code_of_name(name: str) -> str | None:
    """Whisper's code for an English name in lower case, a hyphen for a space or not; None: there is none."""
    plain = name.replace("-", " ")
    by_name = LANGUAGE_NAMES | {known: code for code, known in LANGUAGES.items()}
    return by_name.get(plain)


def bcp47_code(code: str) -> str:
    """The BCP 47 code for one of Whisper's."""
    return _OWN_CODES.get(code, code)
