"""Parts of chat bodies, as clients of OpenAI's API send them."""

import base64
from typing import Any

HELLO = [{"role": "user", "content": "hello"}]
PIXEL = base64.b64encode(b"not really a picture").decode()
IMAGE: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "what is this?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        ],
    }
]
TOOL = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "the time",
        "parameters": {"type": "object", "properties": {}},
    },
}
