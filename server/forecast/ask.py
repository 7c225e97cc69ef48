"""Ask processes of their own what a job will take (`__main__`).

They use the backbone and the cores as the job will; this process does neither, so that it
can be interrupted at once and holds no memory.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ...common.config import Config, flatten
from ...common.errors import IdiolectError, Impossible
from .estimate import MB
from .parts import Count, Part, Speed, Work


def look(
    configs: Sequence[Config],
    nodes: int,
    side_by_side: int,
    environment: Mapping[str, str],
    development: bool = False,
    gpu: str = "",
) -> tuple[list[Count], dict[str, float]]:
    """Count configurations and measure, in processes side by side.

    Parameters
    ----------
    configs
        What the job computes.
    nodes
        To how many processes each deals its users.
    side_by_side
        How many processes measure at the same time.
    environment
        Of these processes.
    development
        Whether development users are measured in place of the others.
    gpu
        Name of a GPU that is not here (`gpus.GPUS`); nothing: this machine is measured.

    Returns
    -------
    tuple
        What was counted of each configuration, and ``start`` (seconds), ``bare``,
        ``loaded`` and ``peak`` (MB) of one process, ``free`` (MB), and ``stand-in``: of how
        many configurations the texts are made up.

    Raises
    ------
    IdiolectError
        The job cannot be done; the sentence is that of the process.
    """
    flat = [flatten(one) for one in configs]
    job = {"configs": flat, "nodes": nodes, "development": development, "gpu": gpu}
    command = [sys.executable, "-P", "-m", "idiolect.server.forecast"]
    started: list[subprocess.Popen[str]] = []
    try:
        for _ in range(side_by_side):
            process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is for this process, which kills them
            )
            started.append(process)
            if process.stdin is not None:
                process.stdin.write(json.dumps(job))
                process.stdin.close()
        said = [p.stdout.read() if p.stdout else "" for p in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    answers = [_answer(text) for text in said]
    speeds = [_speeds(answer) for answer in answers]
    counts = [
        _count(found, _mean([one[i] for one in speeds]))
        for i, found in enumerate(answers[0]["counts"])
    ]
    names = ("start", "bare", "loaded", "peak", "free", "stand-in")
    return counts, {n: sum(a[n] for a in answers) / len(answers) for n in names}


def _answer(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text.splitlines()[-1])
    except (ValueError, IndexError):
        found = {"error": "the process that counts the work of this job has ended."}
    if "error" in found:
        kind = Impossible if found.get("impossible") else IdiolectError
        raise kind(found["error"])
    return found


def _speeds(answer: Mapping[str, Any]) -> list[dict[str, float]]:
    return [count["speed"] for count in answer["counts"]]


def _mean(speeds: Sequence[Mapping[str, float]]) -> Speed:
    names = [entry.name for entry in fields(Speed)]
    return Speed(*(sum(one[n] for one in speeds) / len(speeds) for n in names))


def _count(found: Mapping[str, Any], speed: Speed) -> Count:
    parts = tuple(
        Part(phase, label, node, users, Work(*work), method, trial)
        for phase, label, node, users, work, method, trial in found["parts"]
    )
    memory, prepared = found["memory"], found["prepared"]
    return Count(parts, speed, memory / MB, prepared, found["again"])
