"""What people and Open WebUI say to a model, in so many tokens as a workload wants.

The simulated nodes count four characters as a token, with the marks of the chat template around a message.
"""

from random import Random
from typing import Any

Message = dict[str, Any]

CHARS_PER_TOKEN = 4
MARKS = len("<|im_start|>user\n<|im_end|>\n")  # around each message, in characters
SYSTEM_TOKENS = 200

_VOCABULARY = """
please could you explain how why when the a an of to and in on with from before after because however
report table city engine harbour letter winter market question answer school garden copper signal bridge
small large early late simple careful second other common local write compare list check improve describe
"""
_WORDS = _VOCABULARY.split()

# As Open WebUI's own: the same words first, the chat last.
_TITLE = """### Task:
Generate a concise, 3-5 word title with an emoji summarizing the chat history.
### Guidelines:
- The title should clearly represent the main theme or subject of the conversation.
- Use emojis that enhance understanding of the topic, but avoid quotation marks or special formatting.
- Write the title in the chat's primary language; default to English if multilingual.
- Prioritize accuracy over excessive creativity; keep it clear and simple.
- Your entire response must consist solely of the JSON object, without any introductory or concluding text.
- The output must be a single, raw JSON object, without any markdown code fences or other encapsulating text.
### Output:
JSON format: { "title": "your concise title here" }
### Chat History:
<chat_history>
"""


def system_message(model: str) -> Message:
    """The instructions that all chats with a model begin with."""
    text = f"You are {model}. {_prose(Random(model), SYSTEM_TOKENS * CHARS_PER_TOKEN)}"
    return {"role": "system", "content": text[: _room(SYSTEM_TOKENS)]}


def question(dice: Random, tokens: int, answer: int) -> Message:
    """What a person says, in about so many tokens, and at least what it takes to ask.

    Args:
        dice: chooses the words.
        tokens: of the message.
        answer: words of the answer that it asks for; the simulated nodes obey, a token a word.
    """
    asked = f"Answer in {answer} words."
    text = _prose(dice, max(0, _room(tokens) - len(asked)))
    return {"role": "user", "content": f"{text}{asked}"}


def title_request(messages: list[Message]) -> list[Message]:
    """What Open WebUI asks for after the first answer, of the messages so far."""
    said = "\n".join(
        f"{one['role'].upper()}: {one['content']}" for one in messages if one["role"] != "system"
    )
    return [{"role": "user", "content": f"{_TITLE}{said}\n</chat_history>"}]


def _room(tokens: int) -> int:
    return tokens * CHARS_PER_TOKEN - MARKS


def _prose(dice: Random, length: int) -> str:
    """So many characters, the last one a space."""
    text = ""
    while len(text) < length:
        text += " ".join(dice.choices(_WORDS, k=12)).capitalize() + ". "
    return text[: max(0, length - 1)] + " " * (length > 0)
