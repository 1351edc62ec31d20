"""Windows as other programs take them: 16-bit samples, and WAV files of them."""

import io
import wave

from ollama_pack.speech.values import SAMPLE_RATE, Samples


def int16_bytes(samples: Samples) -> bytes:
    """Samples as little-endian 16-bit integers."""
    scaled = (samples.clip(-1.0, 1.0) * 32767).round()
    return bytes(scaled.astype("<i2").tobytes())


def wav_bytes(samples: Samples) -> bytes:
    """Samples as a WAV file: mono, 16 kHz, 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(int16_bytes(samples))
    return file.getvalue()
