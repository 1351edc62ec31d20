"""The header of a GGUF file: metadata and tensors, without the weights. Its claims are bounded."""

import struct
from typing import Any, BinaryIO

from ollama_pack.fit.shapes import Tensor

MAX_PAIRS = 4096
MAX_TENSORS = 100_000
MAX_TEXT = 2**20
MAX_LIST = 2**22
MAX_KEPT = 4096  # items of a list that are kept; of longer ones only the length counts
MAX_DIMENSIONS = 8

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
# Numbers of the tensor types in the file.
TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K",
    11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
    27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


class GGUFError(ValueError):
    """A file is not a GGUF file that can be read."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"This is not a GGUF file that can be read: {reason}. Download it again.")


class SkippedList:
    """A list that is too long to keep. Its length is all that anybody wants to know."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


def read_header(file: BinaryIO) -> tuple[dict[str, Any], list[Tensor]]:
    """The metadata and the tensors of a GGUF file.

    Raises:
        GGUFError: it is no GGUF file, is cut off, or claims more than any model has.
    """
    if file.read(4) != b"GGUF":
        raise GGUFError("it does not begin with GGUF")
    version = _number(file, "I")
    if version not in {2, 3}:
        raise GGUFError(f"its version is {version}, and 2 and 3 can be read")
    tensors = _bounded(_number(file, "Q"), MAX_TENSORS, "tensors")
    pairs = _bounded(_number(file, "Q"), MAX_PAIRS, "metadata entries")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        name = _text(file)
        metadata[name] = _value(file, _number(file, "I"))
    return metadata, [_tensor(file) for _ in range(tensors)]


def _exactly(file: BinaryIO, count: int) -> bytes:
    read = file.read(count)
    if len(read) != count:
        raise GGUFError("it ends in the middle of its header")
    return read


def _number(file: BinaryIO, form: str) -> Any:
    (value,) = struct.unpack(f"<{form}", _exactly(file, struct.calcsize(f"<{form}")))
    return value


def _bounded(count: int, most: int, what: str) -> int:
    if count > most:
        raise GGUFError(f"it claims {count} {what}, and at most {most} are read")
    return count


def _text(file: BinaryIO) -> str:
    return _exactly(file, _bounded(_number(file, "Q"), MAX_TEXT, "bytes of one text")).decode(
        errors="replace"
    )


def _value(file: BinaryIO, kind: int) -> Any:
    if kind in _NUMBERS:
        return _number(file, _NUMBERS[kind])
    if kind == _TEXT:
        return _text(file)
    if kind != _LIST:
        raise GGUFError(f"it has a value of the unknown type {kind}")
    inner = _number(file, "I")
    length = _bounded(_number(file, "Q"), MAX_LIST, "items of one list")
    if inner in _NUMBERS:
        size = struct.calcsize(f"<{_NUMBERS[inner]}")
        raw = _exactly(file, size * length)
        if length > MAX_KEPT:
            return SkippedList(length)
        return list(struct.unpack(f"<{length}{_NUMBERS[inner]}", raw))
    if inner != _TEXT:
        raise GGUFError(f"it has a list of the unknown type {inner}")
    for _ in range(length):
        _exactly(file, _bounded(_number(file, "Q"), MAX_TEXT, "bytes of one text"))
    return SkippedList(length)


def _tensor(file: BinaryIO) -> Tensor:
    name = _text(file)
    dimensions = _bounded(_number(file, "I"), MAX_DIMENSIONS, "dimensions of a tensor")
    shape = tuple(_number(file, "Q") for _ in range(dimensions))
    kind = _number(file, "I")
    _number(file, "Q")  # where its data begins
    return Tensor(name, TYPE_NAMES.get(kind, str(kind)), shape)
