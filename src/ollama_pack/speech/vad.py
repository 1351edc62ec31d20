"""Voice activity: the Silero detector of faster-whisper, on a recording that comes block by block."""

from collections.abc import Iterable, Iterator
from typing import Any

from ollama_pack.speech.errors import SpeechDependencyError
from ollama_pack.speech.values import Samples, is_silence

FRAME_SAMPLES = 512  # 32 ms: the detector gives a probability for each
_WARM_UP = 64 * FRAME_SAMPLES  # 2 s before a block, from which the detector gets its state
_LOUD = 0.3  # of a block's peak: quiet recordings are amplified to it, for the detector alone
_MAX_GAIN = 30.0


def speech_probabilities(blocks: Iterable[Samples]) -> Iterator[tuple[Samples, Samples]]:
    """Each block with the probability of speech in each of its frames.

    Args:
        blocks: of a recording, in order; all but the last are whole numbers of frames long, or empty.

    Yields:
        The block, and an array with a probability for each frame; the last frame may be partial.

    Raises:
        SpeechDependencyError: the detector is not installed.
    """
    from numpy import concatenate, zeros  # noqa: PLC0415 - see `Samples`

    detect = _detector()
    before: Samples = zeros(0, "float32")
    for block in blocks:
        if not len(block) or is_silence(block):  # it costs nothing, however long it is
            yield block, zeros(-(-len(block) // FRAME_SAMPLES), "float32")
            before = zeros(0, "float32") if len(block) else before
            continue
        padding: Samples = zeros(-len(block) % FRAME_SAMPLES, "float32")
        heard = concatenate((before, block, padding))
        found = detect(_amplified(heard)).reshape(-1)
        yield block, found[len(before) // FRAME_SAMPLES :]
        before = block[-_WARM_UP:] if not len(padding) else before


def _amplified(samples: Samples) -> Samples:
    peak = float(abs(samples).max())
    return samples * min(_MAX_GAIN, _LOUD / peak) if 0 < peak < _LOUD else samples


def _detector() -> Any:
    try:
        from faster_whisper.vad import get_vad_model  # noqa: PLC0415 - loads a model
    except ImportError as error:
        raise SpeechDependencyError("voice activity", "faster-whisper") from error
    return get_vad_model()
