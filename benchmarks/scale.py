"""What a run of a thousand to a million users would take, by what was measured.

    python benchmarks/scale.py

Nothing is measured here. Times come from benchmarks/results/simulation.json and
many_users-0.5B-gpu.json, bytes from wire.json, noise from the accountant of the releases
that the default configuration plans. Writes two tables of docs/scale.md: what was
measured, and the arithmetic.
"""

import json
from dataclasses import dataclass
from typing import Any

from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from report import RESULTS, ROOT, between

from idiolect.client.node.worker import LONGEST_POLL, POLL
from idiolect.common.config import parse
from idiolect.server.run.budget import Population, noise_of

PAGE = ROOT / "docs" / "scale.md"
MEASURED = "<!-- measured: written by a command -->\n", "<!-- measured: end -->"
COUNTED = "<!-- arithmetic: written by a command -->\n", "<!-- arithmetic: end -->"
SIZES = 10**3, 10**4, 10**5, 10**6
EPSILON, COHORT = 8.0, 1000
HOUR = 3600.0
GIB = float(1 << 30)


def kept(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


@dataclass(frozen=True)
class Round:
    """One round of the shared adapter, as a server of devices has it.

    Attributes
    ----------
    users
        Who could take part.
    asked
        Who is asked, on average.
    noise
        Standard deviation of the average's noise, in units of the clip.
    """

    users: int
    asked: int
    noise: float

    def gib(self, wire: dict[str, int]) -> float:
        """Return what goes through the server, both ways."""
        return self.asked * (wire["down"] + wire["up"]) / GIB


def one_round(users: int, asked: int) -> Round:
    """Calibrate the noise of a run whose releases together cost EPSILON at delta 0.1/N."""
    config = parse(
        {
            "privacy.mode": "central",
            "privacy.metrics": "noisy",
            "privacy.epsilon": EPSILON,
            "privacy.delta": 0.1 / users,
            "privacy.sampling": asked / users,
            "privacy.vote-sampling": asked / users,
            "personalise.learning-rates": "3e-3",
            "development-users": 0,
        }
    )
    noise = noise_of(config, Population(users, 0, users))
    return Round(users, asked, noise / asked)


def measured() -> str:
    """What runs took."""
    ours, gpu = kept("simulation"), kept("many_users-0.5B-gpu")
    lines = [
        "| users | seconds | memory of all processes, MiB |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {row['users']:,} | {row['seconds']:.0f} | {row['peak_mb']:.0f} |"
        for row in ours["ours"]["rows"]
    ]
    best = max(gpu["medians"].items(), key=lambda one: one[1]["users_per_minute"])
    about = (
        f"Built-in backbone, {ours['origin']['processor']} "
        "(`benchmarks/simulation.py`: 32 texts of history, shared adapter in four rounds, "
        f"votes, one trained method; commit {ours['origin']['commit']}). On one "
        f"{gpu['gpu']} a model of 0.5 billion parameters trained "
        f"{best[1]['users_per_minute']:.0f} own adapters a minute, {best[0]} users in a "
        "pass (`benchmarks/many_users.py`, random weights, an earlier version)."
    )
    return "\n".join([*lines, "", about, ""])


def hours(users: int) -> tuple[float, float]:
    """Core hours of a simulation on CPUs, GPU hours of own adapters alone."""
    ours, gpu = kept("simulation"), kept("many_users-0.5B-gpu")
    line = ours["ours"]["line"]
    cores = int(ours["origin"]["processor"].split(" x ")[0])
    rate = max(one["users_per_minute"] for one in gpu["medians"].values())
    seconds = line["start"] + line["per_user"] * users
    return cores * seconds / HOUR, users / rate / 60


def arithmetic() -> str:
    """What more would take, if it went on like that."""
    rows = kept("wire")["rows"]
    tiny, large = rows[0], rows[-1]
    head = (
        "| users | simulation, core hours | own adapters of 0.5B, GPU hours "
        "| calls a second at the server while all wait | in a run "
        f"| {tiny['model']}, GiB a round | {large['model']} ({large['targets']}), "
        "GiB a round |"
    )
    lines = [head, "| --- |" + " --- |" * 6]
    for users in SIZES:
        cpu, gpu = hours(users)
        beats = users / HEARTBEAT_DEFAULT_INTERVAL
        waiting, running = (users / pause + beats for pause in (LONGEST_POLL, POLL))
        everybody = Round(users, users, 0.0)
        lines.append(
            f"| {users:,} | {cpu:,.1f} | {gpu:,.1f} | {waiting:,.0f} | {running:,.0f} | "
            f"{everybody.gib(tiny['ours']):,.1f} | {everybody.gib(large['ours']):,.1f} |"
        )
    about = (
        f"With epsilon {EPSILON:g} at delta 0.1/N for all that a run releases: standard "
        "deviation of the noise in each number of the averaged change of the shared "
        "adapter, divided by the largest norm of one user's change (`adapt.clip`), if "
        f"everybody is asked in each round and if about {COHORT:,} are."
    )
    few = f"about {COHORT:,}"
    head = (
        f"| users N | everybody: noise | {few}: noise | bytes a round, of everybody's |"
    )
    lines += ["", about, "", head, "| --- | --- | --- | --- |"]
    for users in SIZES:
        whole, part = one_round(users, users), one_round(users, min(users, COHORT))
        share = part.asked / users
        lines.append(
            f"| {users:,} | {whole.noise:.2g} | {part.noise:.2g} | {100 * share:.3g} % |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Write both tables."""
    text = between(PAGE.read_text(), *MEASURED, measured())
    PAGE.write_text(between(text, *COUNTED, arithmetic()))


if __name__ == "__main__":
    main()
