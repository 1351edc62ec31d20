"""Ten minutes of speech: the pack beside Open WebUI's own engine, the same model on the same file.

    .venv/bin/python bench/voice.py [--minutes 10] [--quick]      writes bench/results/voice.json

The recordings are LibriVox's (Debian: pocketsphinx-testdata), one after the other, many times. Open WebUI
is a real server, asked over its `POST /api/v1/audio/transcriptions`; the pack's engine runs in a process of
its own. Both have loaded the model before the clock starts, and use as many threads as there are cores.
They take turns, two minutes of speech at a time, so that other work on the machine meets both. Real-time
factor: seconds of work by seconds of speech; the goal is 0.2 on two cores. Seconds of processor time are
given too: on a busy machine they say more. Besides: what other settings of the engine cost, and memory for an
hour of MP3.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import requests
from rich.console import Console
from rich.table import Table

from harness.speech_engines import CountingEngine
from harness.speech_recordings import ENCODINGS, RATE, Encoding, encoded, librivox, word_error_rate
from local.webui import open_webui
from ollama_pack.speech.transcribe import transcribe
from ollama_pack.speech.values import SpeechOptions
from ollama_pack.speech.whisper import FasterWhisperEngine, WhisperSettings, load_whisper
from ollama_pack.speech.whisper_model import ModelPlaces, find_whisper_model

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/voice.json"
GOAL = 0.2
MEMORY_GOAL_MB = 150
TURN_SECONDS = 120.0
SWEEP_SECONDS = 100.0
ENGLISH = SpeechOptions(language="en")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Task:
    """A recording, what is said in it, and the model's folder."""

    path: Path
    text: str
    seconds: float
    model: Path


@dataclass(frozen=True)
class Subject:
    """Settings of the pack's engine."""

    name: str
    compute_type: str = "int8"
    threads: int = 2
    beam_size: int = 5


def speech(seconds: float) -> tuple[Any, str]:
    """So much of the recordings, in whole rounds, and what is said."""
    recordings = librivox()
    once = np.concatenate([recording.samples for recording in recordings])
    rounds = max(1, round(seconds * RATE / len(once)))
    return np.tile(once, rounds), " ".join([recording.text for recording in recordings] * rounds)


def task(folder: Path, seconds: float, model: Path) -> Task:
    samples, text = speech(seconds)
    path = folder / f"{seconds:g}.wav"
    path.write_bytes(encoded(samples, Encoding("wav", "pcm_s16le", RATE)))
    return Task(path, text, len(samples) / RATE, model)


def figures(name: str, wall: float, processor: float, job: Task, text: str) -> dict[str, Any]:
    return {
        "name": name,
        "wall_seconds": round(wall, 2),
        "processor_seconds": round(processor, 2),
        "real_time_factor": round(wall / job.seconds, 4),
        "processor_factor": round(processor / job.seconds, 4),
        "word_error_rate": round(word_error_rate([(job.text, text)]), 4),
        "load_average": round(os.getloadavg()[0], 1),
    }


def ours(subject: Subject, job: Task) -> dict[str, Any]:
    """The pack, in a process of its own."""
    asked = json.dumps(
        [str(job.path), str(job.model), subject.compute_type, subject.threads, subject.beam_size]
    )
    wall, processor, text = json.loads(child_output("--child", asked))
    return figures(subject.name, wall, processor, job, text)


def child_output(*arguments: str) -> str:
    """What this script prints when it is run as a process of its own."""
    run = [sys.executable, __file__, *arguments]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout  # noqa: S603 - itself


def child(asked: str) -> None:
    path, model, compute_type, threads, beam_size = json.loads(asked)
    settings = WhisperSettings(model, compute_type=compute_type, threads=threads, beam_size=beam_size)
    load_whisper(settings)
    began, worked = time.perf_counter(), own_processor_seconds()
    found = asyncio.run(transcribe(path, ENGLISH, FasterWhisperEngine(settings)))
    print(json.dumps([time.perf_counter() - began, own_processor_seconds() - worked, found.text]))


def own_processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def compare(folder: Path, job: Task, turns: int) -> list[dict[str, Any]]:
    """The pack and a real Open WebUI with the same model, in turns; the sums of all turns."""
    environment = {"WHISPER_MODEL": str(job.model), "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    rows: dict[str, list[dict[str, Any]]] = {"the pack": [], "Open WebUI": []}
    with open_webui(folder / "webui", environment=environment) as webui:
        ask(webui.url, webui.admin.token, job)  # loads the model
        for _ in range(turns):
            rows["the pack"].append(ours(Subject("the pack"), job))
            before, began = server_processor_seconds(), time.perf_counter()
            text = ask(webui.url, webui.admin.token, job)
            wall = time.perf_counter() - began
            spent = server_processor_seconds() - before
            rows["Open WebUI"].append(figures("Open WebUI", wall, spent, job, text))
    return [summed(turns_of) for turns_of in rows.values()]


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds added up; rates averaged, as all turns are of the same length."""
    both = {name: sum(row[name] for row in rows) for name in rows[0] if name != "name"}
    means = {name: round(total / len(rows), 4) for name, total in both.items() if "seconds" not in name}
    totals = {name: round(total, 2) for name, total in both.items() if "seconds" in name}
    return {"name": rows[0]["name"], **totals, **means, "turns": [row["wall_seconds"] for row in rows]}


def ask(url: str, token: str, job: Task) -> str:
    with job.path.open("rb") as file:
        answer = requests.post(
            f"{url}/api/v1/audio/transcriptions",
            headers={"Authorization": f"Bearer {token}"},
            files={"file": (job.path.name, file, "audio/wav")},
            data={"language": "en"},
            timeout=3600,
        )
    answer.raise_for_status()
    return str(answer.json()["text"])


def server_processor_seconds() -> float:
    """Of the processes that this one has started, from Linux's /proc."""
    return sum(
        sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / TICKS
        for children in Path("/proc/self/task").glob("*/children")
        for pid in children.read_text().split()
    )


def memory(folder: Path) -> dict[str, Any]:
    """Peak memory for a minute and for an hour of MP3, without a model."""
    samples, _ = speech(60.0)
    minute = encoded(samples, ENCODINGS["mp3"])
    times = round(3600 * RATE / len(samples))
    peaks = {}
    for name, data in (("minute", minute), ("hour", minute * times)):
        path = folder / f"{name}.mp3"
        path.write_bytes(data)
        peaks[f"{name}_peak_mb"] = round(float(child_output("--memory", str(path))), 1)
    return {**peaks, "goal_mb": MEMORY_GOAL_MB}


def memory_child(path: str) -> None:
    asyncio.run(transcribe(path, ENGLISH, CountingEngine()))
    status = Path("/proc/self/status").read_text()  # getrusage counts the parent's memory too
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def sweep() -> Iterator[Subject]:
    yield Subject("int8, one worker", threads=1)
    yield Subject("int8, two workers of one thread")
    yield Subject("float32, two workers", compute_type="float32")
    yield Subject("int8, two workers, no beam", beam_size=1)


def run(minutes: float, *, quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="voice-") as place:
        folder = Path(place)
        model = find_whisper_model("base", ModelPlaces(joined=folder))
        job = task(folder, TURN_SECONDS, model)
        short = task(folder, SWEEP_SECONDS, model)
        turns = max(1, round(minutes * 60 / job.seconds))
        compared = compare(folder, job, turns)
        return {
            "speech_seconds": round(job.seconds * turns, 1),
            "model": "Whisper base, int8",
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "versions": {
                name: version(name) for name in ("open-webui", "faster-whisper", "ctranslate2", "av")
            },
            "goal_real_time_factor": GOAL,
            "compared": compared,
            "settings": [] if quick else [ours(subject, short) for subject in sweep()],
            "memory": {} if quick else memory(folder),
        }


def show(result: dict[str, Any]) -> None:
    table = Table("", "real time factor", "wall s", "processor s", "WER", title="Whisper base on speech")
    for row in (*result["compared"], *result["settings"]):
        cells = (row["wall_seconds"], row["processor_seconds"], f"{row['word_error_rate']:.1%}")
        table.add_row(row["name"], f"{row['real_time_factor']:.3f}", *map(str, cells))
    Console().print(table)
    print(f"goal {GOAL}; memory for MP3: {result['memory'] or 'not measured'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--quick", action="store_true", help="only the comparison")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child)
    elif given.memory:
        memory_child(given.memory)
    else:
        result = run(given.minutes, quick=given.quick)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
        show(result)


if __name__ == "__main__":
    main()
