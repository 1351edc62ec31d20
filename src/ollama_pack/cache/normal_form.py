"""The normal form of a question: two texts with the same form are one question in other words.

Nothing here knows what a text means. What changes the answer of no question goes: width, most of case and
punctuation, greetings, thanks, frames of a request ("could you tell me"), contractions, British or American
spelling, and a few turns of phrase that mean the same wherever they occur. All other words stay, in
their order, with all numbers, units, negations, names, and quoted text and code to the letter.

A text gives no form, and so has only its exact key, where it is long, has several lines of code, or is in a
language without rules here. English and Chinese have them.
"""

import re
import unicodedata

from ollama_pack.cache.normal_words import (
    ACRONYMS,
    CASED,
    CODE_NOUNS,
    CONTRACTIONS,
    ENGLISH_WORDS,
    FOREIGN,
    FUNCTION_WORDS,
    ISE,
    MENTIONS,
    NAMES,
    OUR,
    TECHNICAL,
    UNCASED,
)
from ollama_pack.cache.normal_zh import chinese_form

NORMAL_VERSION = (
    2  # to be raised with any change of a rule or a list: the forms are part of keys in the store
)
_FEWEST = 3  # words of a question that has nothing but "what is it" and the like
LONGEST, LONGEST_CHINESE = 600, 150  # characters; nobody types a longer question twice

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "´": "'"})  # noqa: RUF001
_TOKEN = re.compile(
    r"""
    `[^`]*` | "[^"]*" | (?<!\w)'[^'\n]*'(?!\w)           # code and quotes
    | [^\s,;!?"'`\u3400-\u9fff]*(?:[/\\@_={}\[\]|^~<>$*&]|\(\))[^\s,;!?"`\u3400-\u9fff]*   # paths, URLs, code
    | \d+(?:[.,:]\d+)*[%!]? | \b[A-Za-z]!(?!\w)               # 5! is a factorial
    | \d*[A-Za-z]+\d[\w.]* | \d[\w]*
    | [A-Za-z]+(?:\.[A-Za-z]+)+\.? | [A-Za-z]+(?:['-][A-Za-z]+)*'?  # words
    | [\u3400-\u9fff] | ¶ | \S
    """,
    re.VERBOSE,
)
_UNIT = re.compile(
    r"(\d+(?:[.,]\d+)*)(km|kg|cm|mm|mg|g|m|mb|gb|tb|kb|MB|GB|TB|KB|lb|lbs|ml|l|L|%|am|pm|AM|PM)"
)
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+")
_ENDS = (".", "!", "?", ",", ";", "…", ":", "¶")
_SMILES = ("🙏", "🙂", "😊", "👍")  # nothing after an end mark or thanks; elsewhere they may be asked about
_MORE = r"(?:s|ed|ing|ly|ful|less|able|er|ers|ite|ites)?"
_OUR_WORD = re.compile(rf"({'|'.join(sorted(OUR, key=len, reverse=True))}){_MORE}")
_ISE_WORD = re.compile(
    rf"({'|'.join(sorted(ISE, key=len, reverse=True))})is(e|es|ed|ing|er|ers|ation|ations)"
)

_BEGINNINGS = frozenset({"who", "it", "may", "can", "will", "go", "no", "next"})
_BEFORE_SENTENCE = frozenset({".", "!", "?", ",", "¶", ":", ";", "…"})
_HELLOS = frozenset({"hi", "hello", "hey", "there", "morning", "please", "so", "ok", "afternoon", "evening"})
_WH = "(?:what|who|whom|whose|which|where|when|why|how)"
_AUX = "(?:is|are|was|were|do|does|did|can|could|will|would|should|may|might|must|has|have|had|am)"
_DO = (
    "(?:explain|tell|give|write|list|describe|summarize|translate|show|help|compare|define|recommend|suggest"
    "|calculate|convert|find|fix|create|make|generate|plan|draft|rewrite|rephrase|proofread|correct|check"
    "|solve|teach|name|provide|outline|analyze|simplify|shorten|improve|review|debug|refactor|implement|design"
    "|prove|compute|format|sort|count|tell|paraphrase|brainstorm|clarify|discuss|elaborate)"
)
# Two words that have become one: what is asked is how they differ
_COLLAPSED = re.compile(r"\b(\S+(?: \S+)?) (?:and|or|versus) \1(?= |$)")
_TO_WORK_ON = re.compile(rf"\b(?:{_DO}|{'|'.join(sorted(MENTIONS))}|this|these|following|text)\b")
_INTRODUCES = re.compile(
    r"(?:question|wondering|know|help|hello|hi|hey|curious|ask|please|thanks|this|(?:question|know|ask) is)$"
)
_STARTER = rf"(?:{_WH}|{_AUX}|{_DO}|please|i (?:want|need|would|am|have|was)|just|quick|sorry|do)"
_MARK = r"(?: [,.!:;¶…-])+"
_GREETING = (
    r"(?:hi|hello|hey|heya|greetings|good (?:morning|afternoon|evening|day)|dear (?:assistant|ai|chatgpt))"
    r"(?: there| everyone| all| again| assistant| chatgpt| friend| ai)?"
)
_OPENER = (
    r"(?:ok|so|well|um|uh|hmm|alright|excuse me|sorry(?: to bother you)?|(?:just )?(?:a |one )?quick question"
    r"|i have (?:got )?a (?:quick |short |simple )?question(?: for you)?|just curious|just wondering"
    r"|thanks|thank you"
    r"|out of curiosity|by the way|btw|question|thanks in advance|please help|help)"
)
# A greeting or an opener stands before a mark, or before what begins a question or request
_START = re.compile(rf"^(?:{_GREETING}|{_OPENER})(?:{_MARK} (?=\S+ )|(?: ,)? (?={_STARTER}\b))")
_PLEASE = re.compile(rf"^please(?: ,)? (?={_STARTER}\b|\w+ )")
_THANKS = (
    r"(?:many thanks|thanks(?: (?:a lot|so much|in advance|very much|again|a bunch|you))?"
    r"|thank you(?: (?:so much|very much|in advance|again|for your help|kindly))?|thank u|cheers|ty"
    r"|i appreciate it|much appreciated|if you do not mind|i am just curious|just curious|have a nice day)"
)
_END = re.compile(
    rf"(?:{_MARK} {_THANKS}|(?<! to)(?<! say)(?<! word)(?<! mean)(?<! a)(?<! the)(?: ,)? please"
    rf"| thanks in advance| thank you in advance)$"
)
_END_BARE = re.compile(r"(?:(?: \S+){4,}) (thanks|thank you)$")
_NOT_BEFORE_THANKS = frozenset(
    {
        "say",
        "saying",
        "write",
        "mean",
        "means",
        "a",
        "the",
        "no",
        "and",
        "or",
        "with",
        "of",
        "my",
        "to",
        "for",
    }
)

_LIKE = "i (?:just )?(?:want|need|would like|would love)"
_ASKING = (
    "(?:(?:can|could|would|will) you(?: kindly)? please(?: just)*"
    f"|{_LIKE}(?: for)? you to|i would appreciate it if you could"
    "|it would be (?:great|nice|helpful|good) if you could|would you be so kind as to|please|just)"
)
# "Can you give blood with a cold?" asks what people can do. Without a "please" it is a request only where
# nobody but an assistant is asked: for the asker, or with a verb that people ask about with other words.
_CAN_YOU = (
    "(?:(?:can|could|will) you|(?:can|could) (?:someone|anyone|anybody)|do you think you (?:can|could)"
    "|is it possible for you to)(?: possibly| perhaps| maybe| just)*"
)
_OF_PEOPLE = (
    r"(?!explain (?:being|having) )(?!.*\b(?:your|yourself|without|ever|legally|still|yet|anymore|alone)\b)"
)
_TEXTS = "poem|haiku|limerick|sonnet|song|joke|story|essay|speech|paragraph"
_FOR_THE_ASKER = (
    rf"(?:(?:tell|give|show|help|teach|find|list|write|make|draft|suggest|recommend|send|get) me\b"
    r"|(?:explain|clarify|elaborate|recommend|suggest|summarize|describe)\b"
    r"|(?:translate|proofread|rewrite|rephrase|paraphrase|check|correct|fix|solve|simplify|shorten|improve"
    r"|review) (?:this|these|the following|my)\b"
    rf"|{_DO} .+ for me$|(?:write|tell) (?:a|2|3|4|5) (?:\w+ )?(?:{_TEXTS})s? (?:about|on)\b)"
)
_ASK = re.compile(
    rf"^(?:{_ASKING}(?: ,)? (?={_DO}\b(?: \S+))|{_CAN_YOU} {_OF_PEOPLE}(?={_FOR_THE_ASKER} \S)"
    r"|would you (?=(?:explain|tell me|clarify)\b \S))"
)
_KNOW = re.compile(
    rf"^(?:tell me|let me know|{_LIKE} to (?:know|ask you|find out|understand|learn)"
    r"|i (?:was|am) (?:just )?(?:wondering|curious)|i wonder|do you (?:happen to )?know|does anyone know"
    r"|(?:can|may|could) i ask you|(?:do you have )?any idea"  # "can I ask why" asks whether one may
    r"|i am trying to (?:understand|find out|figure out)|help me (?:to )?understand"
    rf"|what {_LIKE} to know is|what i want to know is|my question is|the question is"
    rf"|(?:explain|clarify|describe)(?: to me| for me)?|(?:show|teach) me)(?: [,:])? (?={_WH}\b)"
)
_WHETHER = re.compile(
    rf"^(?:tell me|let me know|{_LIKE} to (?:know|ask you)|i (?:was|am) (?:just )?wondering|i wonder"
    r"|do you (?:happen to )?know|(?:can|may|could) i ask you) (?:if|whether) (.+)$"
)
_ABOUT = re.compile(rf"^(?:tell me|{_LIKE} to (?:know|hear)) about (?=\S)")
_THE = re.compile(
    rf"^(?:tell me|give me|{_LIKE} to know|what is|what are|name|list|list me)"
    r" the (?=\w+(?: \w+)* (?:of|for|between|from|in|that|to) |\w+ \w)"
)
_GIVE_ME = re.compile(
    r"^(give|show|write|find|make|draft|list|teach|recommend|suggest|create|generate|plan) me (?=\S+ )"
)
_FOR_ME = (  # what somebody wants for himself in any case; "suggest a nickname for me" is another wish
    "(?:explain|clarify|translate|summarize|define|solve|proofread|check|calculate|convert|fix|correct|simplify"
    "|paraphrase|rephrase|rewrite|debug|compute|analyze|compare|list)"
)
_TO_ME = re.compile(rf"^((?:explain|clarify|describe) to|{_FOR_ME} for) me (?=\S)")
_TO_ME_LAST = re.compile(
    rf"^(?!.* {_WH}\b)((?:explain|clarify|describe) .+(?= to me$)|{_FOR_ME} .+(?= for me$)) (?:to|for) me$"
)
_EXACTLY = re.compile(rf"^({_WH}) (?:exactly|actually|basically) (?={_AUX} \S)")
_COMMA_LAST = re.compile(r"(?<= ),(?= (?:and|or) )")
_IF = "if|when|in|for|given|as|while|since|because|suppose|assuming|on|at"
_OPENING = re.compile(rf"^((?:{_IF}) [^,.¶]+) , (?=(?:{_WH}|{_AUX})\b[^,]*$)")
_THE_OF = re.compile(
    r"\bthe (?=(?!(?:rest|number|one|few|most|both|majority|half|lot|other|others|2|3)\b)[a-z]+ of )"
)
_RELATION = (
    "capital|population|currency|president|king|queen|ceo|founder|author|height|weight|size|area|age|birthday"
    "|flag|mayor|gdp|economy|climate|history|atomic number|prime minister|national anthem|official language"
    "|boiling point|melting point|salary|net worth|date of birth"
)
_POSSESSIVE = re.compile(rf"^(?:what is|what are|who is|tell me) ([a-z]+)'s ({_RELATION})$", re.IGNORECASE)
_YOU_DO = (
    "make|cook|bake|spell|pronounce|calculate|convert|create|build|fix|install|remove|get|find|change|clean|tie"
    "|say|grow|boil|fry|draw|solve|open|close|use|set|add|delete|write|plant|cut|peel|store|freeze|wash|measure"
)
_STATES = (  # "how do I look?" and "how could I forget?" want no instructions
    "look|feel|sound|seem|appear|compare|rank|score|weigh|smell|relate|differ|die|be|have|do|am"
)
_REPROACHES = "forget|let|believe|miss|think|say|know|not"
_HOW_TO = re.compile(
    rf"^how (?:(?:do|can) i(?! (?:{_STATES})\b)|(?:could|would) i(?! (?:{_STATES}|{_REPROACHES})\b)"
    rf"|(?:do|can|could|would) you(?= (?:{_YOU_DO})\b)|does one) (?=[a-z])"
)
_GO_THERE = "find|buy|get|go|apply|register|send|download|vote|sign|report|start|begin|put|click|watch|see"

# Turns of phrase, each with a text without which it cannot be there. Those of the first group are looked for
# before the verb of a question is moved to its front.
_FIRST_TURNS: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (needle, re.compile(pattern), said)
    for needle, pattern, said in (
        ("can i", r"^where can i (?=[a-z])", "where to "),
        ("do i", rf"^where do i (?=(?:{_GO_THERE})\b)", "where to "),
        (" we ", r"^how (?:can|could) we (?=[a-z])", "how do we "),
        ("how come", r"^how come (?=\S+ \S+)", "why "),
        ("reason", r"^for (?:what|which) reason (?=\S+ \S+)", "why "),
        (" year ", r"^in (?:what|which) year (?=(?:did|was|were|is|will)\b)", "what year "),
        (" what ", rf"^(?:at|on|in) what (time|day|date|month|temperature) (?={_AUX}\b)", r"what \1 "),
        ("which ", rf"^which (\w+) (?={_AUX}\b)", r"what \1 "),
        (" mean", r"^what does (.+) mean$", r"the meaning of \1"),
        ("meaning of", r"^what is the meaning of (?!life$)(.+)$", r"the meaning of \1"),
        (" mean", r"^what (?!life\b)(\S+(?: \S+)?) means$", r"the meaning of \1"),
        (" not ", r"^(why|how) (\w+) not (i|we|you|they|he|she|it) ", r"\1 \2 \3 not "),
        ("what makes", r"^what makes (\w+s) (\w+)$", r"why do \1 \2"),
        ("old is", r"^how old is (.+)$", r"§ age of \1"),
        ("tall is", r"^how tall is (.+)$", r"§ height of \1"),
        ("live in", r"^how many people live in (.+)$", r"§ population of \1"),
        ("inhabitants", r"^how many inhabitants does (.+) have$", r"§ population of \1"),
        ("cost", r"^how much (does|do|did|would) (.+) cost$", r"what \1 \2 cost"),
        ("are there", r"^how many (.+) are there(?= in\b)", r"how many \1 are"),
    )
)
_TURNS: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (needle, re.compile(pattern), said)
    for needle, pattern, said in (
        ("definition", r"^(?:§|give(?: a| the)) definition of (.+)$", r"define \1"),
        (
            "difference",
            r"^(?:(?:§|explain(?: the)?) )?difference between (.+) and (.+)$",
            r"difference \1 and \2",
        ),
        ("differ", r"^how (?:do|does) (.+) and (.+) differ$", r"difference \1 and \2"),
        ("different", r"^how (?:is|are) (.+) different (?:from|than|to) (.+)$", r"difference \1 and \2"),
        ("differ", r"^how (?:do|does) (.+) differ from (.+)$", r"difference \1 and \2"),
        (
            "versus",
            r"^(.+) versus (\S+)(?: [:,])? (?:what is the difference|difference)$",
            r"difference \1 and \2",
        ),
        ("author", r"^who (?:is|was) (?:the )?author of (.+)$", r"who wrote \1"),
        ("inventor", r"^who (?:is|was) (?:the )?inventor of (.+)$", r"who invented \1"),
        ("founder", r"^who (?:is|was) (?:the )?founder of (.+)$", r"who founded \1"),
        ("ated", r"^where (is|are) (.+) (?:located|situated)$", r"where \1 \2"),
        (
            "which is",
            r"^which is (\w+) the (largest|smallest|tallest|longest|oldest|fastest|highest|deepest) (?=in )",
            r"§ \2 \1 ",
        ),
        ("advantages", r"^§ advantages of", "§ benefits of"),
        (
            "into",
            r"\binto (spanish|french|german|english|italian|portuguese|chinese|japanese|korean|arabic)$",
            r"to \1",
        ),
        ("birth", r"\bdate of birth\b", "birth date"),
        ("orld ", r"\b[Ww]orld [Ww]ar (?:ii|2|II)\b", "wwii"),
        ("orld ", r"\b[Ww]orld [Ww]ar (?:i|1|I)\b", "wwi"),
        ("orld ", r"\b[Ss]econd [Ww]orld [Ww]ar\b", "wwii"),
        ("orld ", r"\b[Ff]irst [Ww]orld [Ww]ar\b", "wwi"),
        (
            "the ",
            r"\bthe (US|uk|usa|eu|united states|united kingdom|internet|netherlands|philippines)\b",
            r"\1",
        ),
        ("united kingdom", r"\bunited kingdom\b", "uk"),
        ("united states", r"\bunited states(?: of america)?\b", "usa"),
        ("US", r"^(?!.*\b(?:stand|mean|letters|meaning)\b)(.*)\bUS\b", r"\1usa"),
        ("per ", r"\bper (day|week|month|year|hour)\b", r"every \1"),
    )
)


# Of a clause without a helping verb, that its question has: how vaccines work, how do vaccines work
_FINAL_VERBS = {
    **{f"{verb}s": ("does", verb) for verb in ("work", "mean", "cost", "happen", "stand")},
    **{verb: ("do", verb) for verb in ("work", "mean", "cost", "happen")},
    **{f"{verb}ed": ("did", verb) for verb in ("end", "start", "happen")},
}


def normal_form(text: str) -> str:
    """The form; empty where there is none."""
    if len(text) > LONGEST:
        return ""
    plain = _width(text).translate(_QUOTES).strip()
    if "\n" in plain:
        if re.search(r"\n[ \t]|[{};=]\s*\n|\n\s*[#/*<|>-]|```", plain):
            return ""
        plain = re.sub(r"\s*\n\s*", " ¶ ", plain)
    if plain.count('"') % 2 or plain.count("`") % 2:
        return ""
    tokens = _TOKEN.findall(plain)
    if plain.isupper() and len(tokens) > _FEWEST and not CASED.intersection(map(str.lower, tokens)):
        tokens = [token if token[0] in "\"'`" else token.lower() for token in tokens]
    if _HAN.search(plain):
        if len(plain) > LONGEST_CHINESE:
            return ""
        return chinese_form(plain, _cased_tokens(tokens))
    return _english_form(tokens) if _is_english(plain, tokens) else ""


def _width(text: str) -> str:
    """Full-width and half-width forms as usual ones. Not all of NFKC: it makes x² into x2."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", "".join(map(_narrow, text)))


def _narrow(letter: str) -> str:
    wide = letter == "\u3000" or unicodedata.decomposition(letter).startswith(("<wide>", "<narrow>"))
    if not wide:
        return " " if letter in "\u00a0\u2009\u202f" else letter
    return unicodedata.normalize("NFKC", letter)


def _is_english(text: str, tokens: list[str]) -> bool:
    if any(letter.isalpha() and not letter.isascii() for letter in text):
        return False
    words = {word for token in tokens for word in CONTRACTIONS.get(token.lower(), (token.lower(),))}
    return len(words & ENGLISH_WORDS) > len(words & FOREIGN)


def _cased_tokens(tokens: list[str]) -> list[str]:
    return [_cased(token) for token in tokens]


def _cased(word: str, *, inside: bool = False) -> str:
    """A word without its case, where that says nothing.

    Args:
        word: it.
        inside: of a sentence. There a capital makes a name, as in "Who owns the Sun?", and only of well-known
            names that are no word in small letters the case is dropped: many people do not type it.
    """
    small = word.lower()
    if small == word or not word[0].isalpha() or not word.replace("'", "").replace("-", "").isalpha():
        return word
    if small in ACRONYMS or word == "I" or small in CONTRACTIONS:
        return small
    if len(word) == 1:
        return small if word == "A" else word
    if word.isupper() or word != small.capitalize():
        return small if all(each.istitle() for each in word.split("-")) else word
    name = small.removesuffix("'s")
    if small in UNCASED or (name in NAMES if inside else small not in CASED):
        return small
    return word


def _english_form(tokens: list[str]) -> str:
    tokens, material = _without_material(tokens)
    tokens = _settled(tokens)
    ended = ""
    while tokens and (tokens[-1] in _ENDS or (tokens[-1] in _SMILES and _may_smile(tokens))):
        ended = "?" if tokens[-1] == "?" else ended
        tokens.pop()
    mentions = not MENTIONS.isdisjoint(tokens)
    words = [
        word
        for place, token in enumerate(tokens)
        for word in ((token,) if mentions and not _begins(tokens, place) else _words_of(token))
    ]
    said = _without_frames(_without_commas(_lean(" ".join(words))))
    kept = said.split(" ")
    if not said or (len(kept) < _FEWEST and FUNCTION_WORDS.issuperset(kept)):
        return ""
    said = _turned(said)
    if _COLLAPSED.search(said):
        return ""
    asks = re.match(rf"(?:{_WH}|{_AUX}|{_DO}|§|the meaning of|difference|about)\b|§", said)
    return f"en {said}" + (" ?" if ended and not asks else "") + (f" : {material}" if material else "")


def _without_material(tokens: list[str]) -> tuple[list[str], str]:
    """What comes before a colon, and what comes after it: a text to work on, which is kept to the letter.

    After "my question is:" comes the question itself.
    """
    place = tokens.index(":") if ":" in tokens else 0
    before, after = " ".join(tokens[:place]).lower(), " ".join(tokens[place + 1 :]).lower()
    is_title = re.match(rf"{_WH}\b", after) and not _TO_WORK_ON.search(before)  # Rust: what is a trait?
    if not place or is_title or _INTRODUCES.search(before):
        return tokens, ""
    return tokens[:place], " ".join(tokens[place + 1 :])


def _settled(tokens: list[str]) -> list[str]:
    """The tokens in the case that matters where they stand."""
    words = [token for token in tokens if len(token) > _FEWEST and token.isalpha()]
    titled = len(words) > _FEWEST and all(word[0].isupper() for word in words)
    return [_settled_case(tokens, place, titled=titled) for place in range(len(tokens))]


def _begins(tokens: list[str], place: int) -> bool:
    """Whether a sentence begins there, after a greeting maybe."""
    before = tokens[place - 1].lower() if place else "."
    return before in _BEFORE_SENTENCE or (place < _FEWEST and before in _HELLOS)


def _may_smile(tokens: list[str]) -> bool:
    before = tokens[-2].lower() if len(tokens) > 1 else ""
    return before in _ENDS or before in _SMILES or before in ("thanks", "thank", "you", "please")


def _settled_case(tokens: list[str], place: int, *, titled: bool) -> str:
    """A token in the case that matters where it stands.

    A capital at the start of a sentence says nothing of a word that often begins one.
    """
    token, begins = tokens[place], _begins(tokens, place)
    before, small = tokens[place - 1].lower() if place else ".", token.lower()
    if token.istitle() and (
        (small in _BEGINNINGS and begins)
        or (small in TECHNICAL and before in ("in", "using"))
        or (small == "earth" and before == "the")
    ):
        return small
    if place and not CODE_NOUNS.isdisjoint(tokens):
        return token
    return _cased(token, inside=not (begins or titled))


def _words_of(token: str) -> tuple[str, ...]:  # noqa: PLR0911 - a line for each kind
    if (found := CONTRACTIONS.get(token)) is not None:
        return found
    if token[0].isdigit():
        if _THOUSANDS.fullmatch(token):
            return (token.replace(",", ""),)
        if parts := _UNIT.fullmatch(token):
            unit = parts[2].lower() if parts[2].lower() in ("am", "pm") else parts[2]
            return parts[1], unit
        return (token,)
    if match := _OUR_WORD.fullmatch(token):
        return (token.replace(match[1], match[1].replace("our", "or"), 1),)
    if match := _ISE_WORD.fullmatch(token):
        return (f"{match[1]}iz{match[2]}",)
    return (token,)


def _lean(said: str) -> str:
    """Without greetings, thanks and the like at both ends."""
    while True:
        shorter = _PLEASE.sub("", _START.sub("", said))
        shorter = _END.sub("", shorter)
        if (bare := _END_BARE.search(shorter)) and shorter[: bare.start(1)].split()[
            -1
        ] not in _NOT_BEFORE_THANKS:
            shorter = shorter[: bare.start(1)].rstrip()
        shorter = _without_ends(shorter)
        if shorter == said:
            return said
        said = shorter


def _without_ends(said: str) -> str:
    words = said.split(" ")
    while len(words) > 1 and words[-1] in _ENDS:
        words.pop()
    return " ".join(words)


def _without_commas(said: str) -> str:
    said = _OPENING.sub(r"\1 ", said)
    if said.count(" , ") > 1:
        said = _COMMA_LAST.sub("", said).replace("  ", " ")
    return said


def _without_frames(said: str) -> str:
    """Without what only says that something is asked."""
    while True:
        shorter = _lean(_ASK.sub("", said))
        if match := _WHETHER.match(shorter):
            shorter = _as_question(match[1])
        shorter = _not_to_me(shorter)
        shorter = _KNOW.sub("", shorter)
        shorter = _ABOUT.sub("about ", shorter)
        shorter = _GIVE_ME.sub(r"\1 ", shorter)
        if shorter == said:
            return _EXACTLY.sub(r"\1 ", said)
        said = shorter


def _not_to_me(said: str) -> str:
    if match := _TO_ME.match(said):
        said = f"{match[1].partition(' ')[0]} {said[match.end() :]}"
    return _TO_ME_LAST.sub(r"\1", said)


def _as_question(clause: str) -> str:
    """`dogs can eat chocolate` as `can dogs eat chocolate`: the first of its verbs goes to the front."""
    words = clause.split(" ")
    for place, word in enumerate(words[:4]):
        if re.fullmatch(_AUX, word):
            return " ".join([word, *words[:place], *words[place + 1 :]])
    return f"if {clause}"


def _fronted(said: str) -> str:
    """A question with its verb right after the question word, however it was framed.

    `how old is he` and `how old he is` become one; so do `how do vaccines work` and `how vaccines work`.
    """
    words = said.split(" ")
    if not re.fullmatch(_WH, words[0]) or len(words) < _FEWEST or (words[0] == "how" and words[1] == "to"):
        return said
    place = next((place for place, word in enumerate(words) if place and re.fullmatch(_AUX, word)), 0)
    if place == 1:
        return said
    if not place:
        at = -2 if words[-1] == "for" else -1
        helper, verb = _FINAL_VERBS.get(words[at], ("", ""))
        asks = ("how", "why", "when", "where") if helper == "did" else ("how", "what", "why", "when", "where")
        if not helper or words[0] not in asks or len(words) < 2 - at:  # what war ended, what did war end
            return said
        words[at] = verb
        return " ".join([words[0], helper, *words[1:]])
    return " ".join([words[0], words[place], *words[1:place], *words[place + 1 :]])


def _turned(said: str) -> str:
    said = _turns(_POSSESSIVE.sub(r"§ \2 of \1", said), _FIRST_TURNS)
    said = _THE.sub("§ ", _fronted(said))
    return _THE_OF.sub("", _HOW_TO.sub("how to ", _turns(said, _TURNS)))


def _turns(said: str, turns: tuple[tuple[str, re.Pattern[str], str], ...]) -> str:
    for needle, pattern, instead in turns:
        if needle in said:
            said = pattern.sub(instead, said)
    return said
