"""What goes wrong with transcription."""

from collections.abc import Iterable

from ollama_pack.base.messages import joined, message
from ollama_pack.errors import PackError

_MEBIBYTE = 2**20


class SpeechError(PackError):
    """A recording was not transcribed."""


class AudioError(SpeechError):
    """It is the recording's own fault: trying again with the same one does not help."""


class EmptyAudioError(AudioError):
    """There is not a single byte."""

    def __init__(self) -> None:
        super().__init__(message("the recording is empty (0 bytes): record or upload it again"))


class NotAudioError(AudioError):
    """The bytes are neither audio nor video, or too damaged to be read as such.

    Attributes:
        said: what the decoder says.
    """

    def __init__(self, said: str) -> None:
        super().__init__(
            message(
                "the file is no audio or video that can be read ({said}): send MP3, M4A, AAC, OGG, "
                "Opus, WebM, MP4, MOV, FLAC, WMA, AIFF or WAV; if it is one, it is damaged: upload "
                "it again",
                said=said,
            )
        )
        self.said = said


class NoAudioTrackError(AudioError):
    """A video or picture without sound.

    Attributes:
        container: the format of the file.
    """

    def __init__(self, container: str) -> None:
        super().__init__(
            message("the file ({container}) has no audio track: nothing to transcribe", container=container)
        )
        self.container = container


class SampleRateError(AudioError):
    """The recording claims a sampling rate with which nobody records speech.

    Attributes:
        rate: in Hz.
    """

    def __init__(self, rate: int, lowest: int, highest: int) -> None:
        super().__init__(
            message(
                "the recording has {rate} samples a second: speech is recorded with {lowest} to "
                "{highest}; record it again, or convert it",
                rate=rate,
                lowest=lowest,
                highest=highest,
            )
        )
        self.rate = rate


class ZeroLengthError(AudioError):
    """There is an audio track, and not a single sample in it could be decoded.

    Attributes:
        damaged: packets that could not be decoded.
    """

    def __init__(self, damaged: int) -> None:
        why = (
            message("all its {damaged} packets are damaged", damaged=damaged)
            if damaged
            else message("it is 0 seconds long")
        )
        super().__init__(
            message("the audio track holds no sound ({why}): record or upload it again", why=why)
        )
        self.damaged = damaged


class NoSpeechError(AudioError):
    """Nobody says anything. Better than a guess: speech models make up words for silence.

    Attributes:
        seconds: how long the recording is.
    """

    def __init__(self, seconds: float, other_tracks: str = "") -> None:
        more = f" {other_tracks}" if other_tracks else ""
        super().__init__(
            message(
                "no speech was found in {seconds:.1f} s of audio: is the microphone on?{more}",
                seconds=seconds,
                more=more,
            )
        )
        self.seconds = seconds


class AudioTooLargeError(AudioError):
    """The file has too many bytes.

    Attributes:
        limit: bytes.
        actual: bytes.
    """

    def __init__(self, limit: int, actual: int) -> None:
        super().__init__(
            message(
                "the file has {actual:.1f} MB, the limit is {limit:g} MB: cut it, or save it as MP3 or Opus",
                actual=actual / _MEBIBYTE,
                limit=limit / _MEBIBYTE,
            )
        )
        self.limit = limit
        self.actual = actual


class AudioTooLongError(AudioError):
    """The recording lasts too long.

    Attributes:
        limit: seconds.
        actual: seconds: what the file says of itself, else how far it was decoded.
    """

    def __init__(self, limit: float, actual: float) -> None:
        super().__init__(
            message(
                "the recording lasts {actual:.1f} minutes or more (the limit is {limit:g}): cut it",
                actual=actual / 60,
                limit=limit / 60,
            )
        )
        self.limit = limit
        self.actual = actual


class LanguageTagError(SpeechError, ValueError):
    """A language cannot be used. A `ValueError` too, so that a validator of a valve can let it through.

    Attributes:
        tag: what was given.
        valid: what could be given instead.
    """

    def __init__(self, tag: str, reason: str, valid: Iterable[str]) -> None:
        self.tag = tag
        self.valid = tuple(valid)
        super().__init__(
            message(
                "language {tag!r} {reason}; valid: {valid}",
                tag=tag,
                reason=reason,
                valid=", ".join(self.valid),
            )
        )


class SpeechQueueFullError(SpeechError):
    """Too many recordings wait already.

    Attributes:
        limit: how many may wait.
        waiting: how many do.
    """

    def __init__(self, limit: int, waiting: int) -> None:
        super().__init__(
            message(
                "{waiting} recordings wait for transcription (the limit is {limit}): try again in "
                "some minutes",
                waiting=waiting,
                limit=limit,
            )
        )
        self.limit = limit
        self.waiting = waiting


class SpeechShareFullError(SpeechQueueFullError):
    """Too many recordings of one user are here already; others still have places."""

    def __init__(self, limit: int, waiting: int) -> None:
        super().__init__(limit, waiting)
        said = message(
            "{waiting} of your recordings wait for transcription (the limit is {limit} for each "
            "user): send this one when some of them are done",
            waiting=waiting,
            limit=limit,
        )
        self.args = (said,)


class SpeechEngineError(SpeechError):
    """The engine does not do its work: an admin can help.

    Attributes:
        engine: its name.
    """

    def __init__(self, engine: str, reason: str) -> None:
        super().__init__(message("speech engine {engine!r}: {reason}", engine=engine, reason=reason))
        self.engine = engine


class SpeechDependencyError(SpeechEngineError):
    """A package is missing.

    Attributes:
        package: its name on PyPI.
    """

    def __init__(self, engine: str, package: str) -> None:
        super().__init__(
            engine,
            message(
                "the package {package!r} is missing: `pip install {package}` where Open WebUI runs",
                package=package,
            ),
        )
        self.package = package


class SpeechModelMissingError(SpeechEngineError):
    """The model is nowhere to be found.

    Attributes:
        model: its name.
        searched: the places that were looked at.
    """

    def __init__(self, model: str, searched: Iterable[str], remedy: str) -> None:
        self.model = model
        self.searched = tuple(searched)
        places = joined(self.searched, message("; ")) if self.searched else message("nowhere")
        super().__init__(
            "faster_whisper",
            message(
                "model {model!r} was not found ({places}): {remedy}",
                model=model,
                places=places,
                remedy=remedy,
            ),
        )


class SpeechModelUnusableError(SpeechEngineError):
    """The model is there and cannot be loaded: cut off, of another kind, too large for the memory.

    Attributes:
        model: its name or folder.
    """

    def __init__(self, model: str, said: str) -> None:
        super().__init__(
            "faster_whisper", message("model {model!r} cannot be loaded: {said}", model=model, said=said)
        )
        self.model = model


class SpeechLanguageError(SpeechEngineError):
    """The engine, or its model, does not know the language.

    Attributes:
        tag: the language that was asked for.
        valid: those that it knows.
    """

    def __init__(self, engine: str, tag: str, valid: Iterable[str], remedy: str = "") -> None:
        self.tag = tag
        self.valid = tuple(valid)
        super().__init__(
            engine,
            message(
                "does not know {tag!r}, only {valid}{more}",
                tag=tag,
                valid=", ".join(self.valid),
                more=message(": {remedy}", remedy=remedy) if remedy else "",
            ),
        )


class CloudNotAllowedError(SpeechEngineError):
    """The recognizer sends recordings to somebody else's servers, and the admin has not allowed it.

    Attributes:
        recognizer: its name.
        offline: those that keep recordings here.
    """

    def __init__(self, engine: str, recognizer: str, offline: Iterable[str]) -> None:
        self.recognizer = recognizer
        self.offline = tuple(offline)
        super().__init__(
            engine,
            message(
                "{recognizer!r} sends recordings to a cloud service: set `allow_cloud`, or choose an "
                "offline one: {valid}",
                recognizer=recognizer,
                valid=", ".join(self.offline),
            ),
        )


class SpeechEngineFaultError(SpeechEngineError):
    """The engine failed while it worked."""


class SpeechServerError(SpeechEngineError):
    """A transcription server did not do what it was asked.

    Attributes:
        server: its address, without user name, password and query.
        status: the HTTP status of its answer; None where there was none.
        said: the server's own message, shortened.
    """

    def __init__(self, server: str, reason: str, *, status: int | None = None, said: str = "") -> None:
        more = message(": {remedy}", remedy=said) if said else ""
        super().__init__(
            "openai_http", message("{server} {reason}{more}", server=server, reason=reason, more=more)
        )
        self.server = server
        self.status = status
        self.said = said


class SpeechServerUnreachableError(SpeechServerError):
    """No connection came about."""

    def __init__(self, server: str, said: str) -> None:
        super().__init__(server, message("cannot be reached (does it run, is `base_url` right?)"), said=said)


class SpeechServerTimeoutError(SpeechServerError):
    """The server took too long.

    Attributes:
        seconds: the limit.
    """

    def __init__(self, server: str, seconds: float) -> None:
        super().__init__(
            server, message("has not answered within {seconds:g} s: is it overloaded?", seconds=seconds)
        )
        self.seconds = seconds


class SpeechServerBusyError(SpeechServerError):
    """The server asks for patience, and has not taken the recording after some tries either.

    Attributes:
        retry_seconds: after which it wants to be asked again; None: it does not say.
    """

    def __init__(self, server: str, status: int, said: str, retry_seconds: float | None = None) -> None:
        super().__init__(
            server,
            message("is busy (status {status}): try again later", status=status),
            status=status,
            said=said,
        )
        self.retry_seconds = retry_seconds


class SpeechServerKeyError(SpeechServerError):
    """The server wants another key."""

    def __init__(self, server: str, status: int, said: str) -> None:
        super().__init__(
            server,
            message("does not accept the key (status {status}): check `api_key`", status=status),
            status=status,
            said=said,
        )


class SpeechServerTooLargeError(SpeechServerError):
    """A piece of the recording is too large for the server.

    Attributes:
        sent: bytes that were sent.
    """

    def __init__(self, server: str, sent: int) -> None:
        super().__init__(
            server,
            message(
                "takes less than the {sent:.1f} MB of one request (status 413): raise its limit",
                sent=sent / _MEBIBYTE,
            ),
            status=413,
        )
        self.sent = sent


class SpeechServerRefusedError(SpeechServerError):
    """The server will not take the request: the model's name, the language or the address is wrong."""

    def __init__(self, server: str, status: int, said: str) -> None:
        super().__init__(
            server,
            message(
                "refuses the request (status {status}; check `base_url`, `model`, `language`)", status=status
            ),
            status=status,
            said=said,
        )


class SpeechServerFaultError(SpeechServerError):
    """The server failed, hung up, or answers what is no transcription."""


class NoAttachmentError(SpeechError):
    """There is nothing to transcribe: no recording is attached.

    Attributes:
        attached: names of what is attached instead.
    """

    def __init__(self, what_to_do: str, attached: Iterable[str] = ()) -> None:
        self.attached = tuple(attached)
        instead = message(" (attached: {names})", names=", ".join(self.attached)) if self.attached else ""
        super().__init__(
            message(
                "there is no recording to transcribe{instead}: {what_to_do}",
                instead=instead,
                what_to_do=what_to_do,
            )
        )


class UnknownSpeechModelError(SpeechError):
    """A client asks for a model that is not listed.

    Attributes:
        wanted: its name.
    """

    def __init__(self, wanted: str, known: Iterable[str]) -> None:
        super().__init__(
            message(
                "there is no model {wanted!r}: known are {known}", wanted=wanted[:100], known=", ".join(known)
            )
        )
        self.wanted = wanted


class TranscriptFormatError(SpeechError, ValueError):
    """There is no such format of transcripts. A `ValueError` too, for validators of valves.

    Attributes:
        form: what was asked for.
        valid: what could be.
    """

    def __init__(self, form: str, valid: Iterable[str]) -> None:
        self.form = form
        self.valid = tuple(valid)
        super().__init__(
            message(
                "format {form!r} is not known; valid: {valid}", form=form[:40], valid=", ".join(self.valid)
            )
        )
