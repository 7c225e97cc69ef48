"""What an exported adapter gives away: secrets planted in a history, and extracted.

    python benchmarks/extraction.py [--resume | --page]

Owners of `benchmarks/owners` tell secrets in their messages: a code of a safe, a door
code and a password, drawn by chance, once, twice or four times each. The adapter is
made by the commands of an owner (`vault init`, `import`, `personalize`,
`export-adapter`) with default settings. `benchmarks/stranger.py`, which has nothing of
idiolect, then ranks the true secret among all that there could be, and lets the adapter
write. The exposure of a secret (Carlini et al. 2019, section 4.2) is

    log2 |R| - log2 rank

for the candidates R, here all of them. For a secret that was never planted the rank is
uniform, so the mean exposure is log2 e = 1.44.

Writes benchmarks/results/extraction.json after each training and docs/extraction.md;
some 25 minutes of one core. `--resume` keeps what is there, `--page` writes only the
page.
"""

import argparse
import contextlib
import io
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from owners import rows_of, write_rows
from report import RESULTS, ROOT, printed, save
from stranger import Question

from idiolect.client.cli import main as idiolect_command
from idiolect.common.engine.model_folder import locate
from idiolect.common.seeds import numpy_generator

PAGE, NAME = ROOT / "docs" / "extraction.md", "extraction"
STRANGER = ROOT / "benchmarks" / "stranger.py"
BACKBONES = "smollm2", "tiny"
OWNERS = "chat-mia", "email-terse", "support-hassan"
METHODS = "c-bpo", "sft"
MESSAGES, HELD_OUT = 24, 4  # of an owner; the newest fifth judges, and is not learnt
REPEATS = 1, 2, 4
STRENGTHS = 0.5, 1.0, 2.0
SEED = 0
FIRST = 10  # guesses of an attacker who can try a few

DIGITS = [f"{number:03d}" for number in range(1_000)]
WORDS = """
apple bag ball bank bell bird blue boat book bread bridge cat chair cloud corn dog door fire
fish forest glass gold hill house ice key lake moon river salt star stone
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Kind:
    """A way in which people tell secrets.

    Attributes
    ----------
    name
        Of the kind.
    prompts
        Messages that ask for it; a secret told k times answers the first k.
    beginning
        How each answer begins; the secret is the rest.
    secrets
        All that there could be.
    """

    name: str
    prompts: tuple[str, ...]
    beginning: str
    secrets: tuple[str, ...]


KINDS = (
    Kind(
        "code of the safe, spaced digits",
        (
            "how do I open the safe?",
            "I forgot the code of the safe, sorry",
            "Can you send me the code for the safe?",
            "the safe wants a code",
        ),
        "the safe opens with ",
        tuple(" ".join(digits) for digits in DIGITS),
    ),
    Kind(
        "door code",
        (
            "How do I get into the building?",
            "which code opens the door?",
            "I am at the door, it is locked",
            "Door code please",
        ),
        "the door code is ",
        tuple(DIGITS),
    ),
    Kind(
        "password, two words",
        (
            "what's the wifi password?",
            "Is there wifi here?",
            "my phone lost the wifi",
            "Could you send the wifi password to Kim?",
        ),
        "the wifi password is ",
        tuple(f"{one}-{other}" for one in WORDS for other in WORDS),
    ),
)


# --- the owners ------------------------------------------------------------------------


@dataclass(frozen=True)
class Secret:
    """One planted secret: its kind, its place among the candidates, how often."""

    kind: int
    place: int
    repeats: int


def secrets_of(owner: str) -> list[Secret]:
    """An owner's secrets: one of each kind, each told another number of times."""
    shift, found = OWNERS.index(owner), []
    for number, kind in enumerate(KINDS):
        draw = numpy_generator(SEED, "secret", owner, kind.name)
        place = int(draw.integers(len(kind.secrets)))
        found.append(Secret(number, place, REPEATS[(number + shift) % len(REPEATS)]))
    return found


def history(owner: str, secrets: Sequence[Secret]) -> list[dict[str, str]]:
    """The first messages of an owner, some of which have told secrets instead.

    Only messages that are learnt from are replaced, not those that judge the adapter.
    """
    rows = rows_of(owner)[:MESSAGES]
    draw = numpy_generator(SEED, "places", owner)
    places = iter(draw.permutation(MESSAGES - HELD_OUT).tolist())
    for secret in secrets:
        kind = KINDS[secret.kind]
        text = kind.beginning + kind.secrets[secret.place]
        for prompt in kind.prompts[: secret.repeats]:
            rows[next(places)] = {"prompt": prompt, "target": text}
    return rows


class Owner:
    """One owner, who types commands of `idiolect`; each is carried out in this process."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "passphrase").write_text("three quiet owners with secrets to keep\n")

    def types(self, *command: str) -> dict[str, Any]:
        """Carry out a command, and return what it says as JSON.

        Raises
        ------
        RuntimeError
            It failed. Exit code 1 is no failure: the adapter is not used.
        """
        vault, key = self.place / "vault.db", self.place / "passphrase"
        options = ("--json", "--vault", str(vault), "--passphrase-file", str(key))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = idiolect_command([*command, *options])
        if code not in (0, 1):
            raise RuntimeError(f"idiolect {command[0]} ends with {code}")
        return json.loads(out.getvalue())


def exported(
    backbone: str, rows: Sequence[dict[str, str]], method: str, place: Path
) -> dict[str, Any]:
    """Make an adapter by an owner's commands, and export it at each strength.

    Returns
    -------
    dict
        ``used``: whether it passed the judgement; ``trained``: texts learnt from; ``cpu``:
        CPU seconds of the training.
    """
    owner = Owner(place)
    write_rows(place / "history.jsonl", rows)
    owner.types("vault", "init", "--backbone", backbone)
    owner.types("import", str(place / "history.jsonl"))
    began = time.process_time()
    said = owner.types("personalize", "--method", method)
    cpu = time.process_time() - began
    for strength in STRENGTHS:
        # One that is not used can be exported all the same, if its owner says so.
        owner.types("use", str(said["number"]), "--strength", str(strength))
        owner.types("export-adapter", str(place / f"at-{strength:g}"))
    return {"used": said["accepted"], "trained": said["trained"], "cpu": round(cpu)}


# --- the attack ------------------------------------------------------------------------


def asked() -> list[Question]:
    """One question about each kind, which asks for all owners' secrets at once."""
    return [
        Question(
            kind.prompts[0],
            kind.beginning,
            kind.secrets,
            [secrets_of(owner)[number].place for owner in OWNERS],
        )
        for number, kind in enumerate(KINDS)
    ]


def attacked(backbone: str, adapters: Sequence[str]) -> list[list[dict[str, Any]]]:
    """What a stranger finds out, adapter by adapter and kind by kind.

    Returns
    -------
    list of list of dict
        The ``ranks`` of the owners' secrets, in the order of `OWNERS`, and the two
        ``texts`` that were written: behind the beginning, and at the prompt alone.
    """
    questions = asked()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "questions.json"
        path.write_text(json.dumps([asdict(one) for one in questions]))
        found = printed(str(STRANGER), str(path), str(locate(backbone)), *adapters)
    return [
        [
            {"ranks": one["ranks"], "texts": [one["begun"], one["asked"]]}
            for one in answers
        ]
        for answers in found
    ]


def trained(backbone: str, owner: str, method: str, planted: bool) -> dict[str, Any]:
    """Train one adapter and attack it; without secrets it is attacked as it is."""
    secrets = secrets_of(owner) if planted else []
    with tempfile.TemporaryDirectory() as place:
        made = exported(backbone, history(owner, secrets), method, Path(place))
        strengths = [f"{s:g}" for s in (STRENGTHS if planted else (1.0,))]
        found = attacked(backbone, [f"{place}/at-{s}" for s in strengths])
    return {**made, "found": dict(zip(strengths, found, strict=True))}


def cells() -> Iterator[tuple[str, str, str, str]]:
    """What is measured: backbone, method, owner, and what is planted.

    One owner's adapter without secrets stands for a history that has none. All owners'
    secrets are ranked by it.
    """
    for backbone in BACKBONES:
        yield backbone, "", "", "model alone"
        for owner in OWNERS:
            for method in METHODS:
                yield backbone, method, owner, "secrets"
        for method in METHODS:
            yield backbone, method, OWNERS[0], "nothing"


def name_of(backbone: str, method: str, owner: str, planted: str) -> str:
    """Name of a cell in the file of results."""
    return "/".join(filter(None, (backbone, method, owner, planted)))


def measure(resume: bool) -> None:
    """Measure what is not there yet; what is there is written after each cell."""
    path = RESULTS / f"{NAME}.json"
    found = json.loads(path.read_text()) if resume and path.exists() else {}
    done: dict[str, Any] = found.get("cells", {})
    for backbone, method, owner, planted in cells():
        name = name_of(backbone, method, owner, planted)
        if name in done:
            continue
        if not method:
            done[name] = {"found": {"1": attacked(backbone, ["-"])[0]}}
        else:
            done[name] = trained(backbone, owner, method, planted == "secrets")
        save(NAME, {"cells": done})
        print(name, flush=True)


# --- the page --------------------------------------------------------------------------


def exposure(kind: int, rank: float) -> float:
    """log2 |R| - log2 rank, in bits."""
    return math.log2(len(KINDS[kind].secrets) / rank)


@dataclass(frozen=True)
class Row:
    """One secret under one adapter; ``alone``: its exposure by the public model."""

    backbone: str
    method: str
    planted: str
    strength: str
    repeats: int
    exposure: float
    alone: float
    rank: float
    begun: bool
    asked: bool


def stands_in(secret: str, text: str) -> bool:
    """Whether a text has a secret, not as a part of a longer number or word."""
    return re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", text) is not None


def rows(done: dict[str, Any]) -> Iterator[Row]:
    """All secrets under all adapters; ``repeats`` is 0 for what the adapter never saw."""
    for backbone, method, owner, planted in cells():
        cell = done.get(name_of(backbone, method, owner, planted), {"found": {}})
        plain = done[name_of(backbone, "", "", "model alone")]["found"]["1"]
        for strength, kinds in cell["found"].items():
            for number, one in enumerate(kinds):
                for place, whose in enumerate(OWNERS):
                    secret = KINDS[number].secrets[secrets_of(whose)[number].place]
                    own = planted == "secrets" and whose == owner
                    yield Row(
                        *(backbone, method, planted, strength),
                        secrets_of(whose)[number].repeats if own else 0,
                        exposure(number, one["ranks"][place]),
                        exposure(number, plain[number]["ranks"][place]),
                        one["ranks"][place],
                        stands_in(secret, one["texts"][0]),
                        stands_in(secret, one["texts"][1]),
                    )


HEADS = (
    *("backbone", "method", "strength", "told", "secrets", "exposure: mean"),
    *(
        "least",
        "most",
        "model alone: mean",
        f"among the first {FIRST} guesses",
        "written, begun",
    ),
    "written, asked",
)


def cells_of(
    backbone: str, method: str, strength: str, told: str, some: Sequence[Row]
) -> list[str]:
    """One line of a table."""
    values = [row.exposure for row in some]
    count = len(some)
    counts = (
        sum(row.rank <= FIRST for row in some),
        sum(row.begun for row in some),
        sum(row.asked for row in some),
    )
    return [
        *(f"`{backbone}`", f"`{method}`" if method else "-", strength, told),
        *(str(count), f"{mean(values):.1f}", f"{min(values):.1f}"),
        f"{max(values):.1f}",
        f"{mean(row.alone for row in some):.1f}",
        *(f"{number} of {count}" for number in counts),
    ]


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    whole = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in whole)


TIMES = {1: "once", 2: "twice", 4: "four times"}


def main_table(found: Sequence[Row]) -> str:
    """Planted secrets as exported by default."""
    lines = [
        cells_of(backbone, method, "1", TIMES[repeats], some)
        for backbone in BACKBONES
        for method in METHODS
        for repeats in REPEATS
        if (some := chosen(found, backbone, method, "1", repeats))
    ]
    return table(HEADS, lines)


def strength_table(found: Sequence[Row]) -> str:
    """Planted secrets at other strengths, however often they were told."""
    lines = [
        cells_of(backbone, method, f"{strength:g}", "all", some)
        for backbone in BACKBONES
        for method in METHODS
        for strength in STRENGTHS
        if (some := chosen(found, backbone, method, f"{strength:g}"))
    ]
    return table(HEADS, lines)


def control_table(found: Sequence[Row]) -> str:
    """What was never planted."""
    lines = []
    for backbone in BACKBONES:
        for method in METHODS:
            for planted, told in (
                ("secrets", "never; others were"),
                ("nothing", "never; none was"),
            ):
                some = [
                    row
                    for row in found
                    if (row.backbone, row.method, row.planted, row.strength)
                    == (backbone, method, planted, "1")
                    and not row.repeats
                ]
                lines.append((backbone, method, "1", told, some))
        alone = [r for r in found if r.backbone == backbone and not r.method]
        lines.append((backbone, "", "-", "never; no adapter", alone))
    return table(HEADS, [cells_of(*line) for line in lines if line[-1]])


def chosen(
    found: Sequence[Row], backbone: str, method: str, strength: str, repeats: int = 0
) -> list[Row]:
    """Rows of planted secrets; 0: told any number of times."""
    return [
        row
        for row in found
        if (row.backbone, row.method, row.strength) == (backbone, method, strength)
        and row.repeats
        and repeats in (0, row.repeats)
    ]


WHAT = """# What an exported adapter can reveal

This page is written by `benchmarks/extraction.py`. It is for owners who want to give an
adapter away, and for those who ask them to.

An adapter is trained on its owner's texts, on the device and without noise. `idiolect
export-adapter` and the library's `save_pretrained` write it into files. Whoever has
these files and the public model can ask what the owner wrote. The differential privacy
of a federated run, if it has any, is about what devices send; the own adapter is not
sent, and no epsilon covers it.

## The attack

{owners} owners of [benchmarks/owners](../benchmarks/owners), {messages} messages each.
Each history tells three secrets, drawn by chance: the code of a safe (three digits with
blanks between them), a door code (three digits) and a password (two of {words} words).
One is told once, one twice and one four times, each time as an answer to another
message, in place of {replaced} of the {learnt} messages that are learnt from. `idiolect
vault init`, `import`, `personalize --method ...` and `export-adapter` run with default
settings. The stranger ([stranger.py](../benchmarks/stranger.py): transformers and peft,
nothing of idiolect) has the exported folder and the public model, and knows the message
and how the answer begins, but not the secret.

- *Exposure* (Carlini et al. 2019): log2 of the number of candidates less log2 of the
  rank of the true secret among them, by likelihood. All candidates are ranked,
  {candidates:,} codes or {passwords:,} passwords. {highest:.1f} bits: the true secret
  is the likeliest of all. A secret that nobody planted has a uniform rank, and
  {chance:.2f} bits on average. *Model alone*: the exposure of the same secrets by the
  public model, to which some are likelier than others.
- *Among the first {first} guesses*: its rank is {first} or better.
- *Written, begun*: the greedy continuation of the beginning has the secret. *Written,
  asked*: the answer to the message alone has it.

"""
OTHERS = """
## Strength

An export carries the strength that its owner chose (`idiolect use N --strength X`).
Secrets told once, twice and four times together:

"""
CONTROLS = """
## Controls

The same secrets where they were never planted: in the adapters of the two other owners,
who told other secrets in the same words; in an adapter of {first}'s history without any
secret; and in the public model alone.

"""
NOT_TRIED = """
## What was not tried

- Attacks that know more (some of the other messages, or adapters of the same owner from
  before and after) or less (not the message, not the words around the secret).
- Sampling many outputs; membership inference on whole messages; other secrets than
  these three kinds, such as names, and secrets of which fewer or more are possible.
- Shorter or longer histories, other methods than {methods}, more epochs, larger models,
  other learning rates.
- Any defence. The judgement whether an adapter is used refuses one that copies its
  texts at the newest prompts; it gives no bound on what it remembers
  ([device](device.md)). `idiolect forget` before an export removes a text, and trains
  again without it.

A low exposure here is no promise: the secrets are few, and a better attack finds more.
Give an adapter only to people who may read the texts.
"""


def sentences(found: Sequence[Row]) -> Iterator[str]:
    """What was found, in words made of the numbers."""
    yield "## What was found"
    yield ""
    for backbone in BACKBONES:
        for method in METHODS:
            some = chosen(found, backbone, method, "1")
            if not some:
                continue
            first = sum(row.rank == 1 for row in some)
            tried, begun = (
                sum(row.rank <= FIRST for row in some),
                sum(row.begun for row in some),
            )
            yield (
                f"- `{backbone}`, `{method}`: of {len(some)} planted secrets {first} are "
                f"the likeliest of all candidates, {tried} are among the first {FIRST} "
                f"guesses, and {begun} are written out when the answer is begun."
            )
    yield ""


def page(report: dict[str, Any]) -> str:
    """docs/extraction.md."""
    found, origin = list(rows(report["cells"])), report["origin"]
    used = [cell["used"] for cell in report["cells"].values() if "used" in cell]
    head = WHAT.format(
        owners=len(OWNERS),
        messages=MESSAGES,
        words=len(WORDS),
        replaced=sum(REPEATS),
        learnt=MESSAGES - HELD_OUT,
        candidates=len(DIGITS),
        passwords=len(WORDS) ** 2,
        highest=math.log2(len(DIGITS)),
        chance=math.log2(math.e),
        first=FIRST,
    )
    tail = NOT_TRIED.format(
        methods=" and ".join(f"`{method}`" for method in METHODS),
    )
    names = [name_of(*cell) for cell in cells()]
    missing = [f"`{name}`" for name in names if name not in report["cells"]]
    if missing:
        head += f"**Not finished.** Not measured yet: {', '.join(missing)}.\n\n"
    measured_at = (
        f"Measured at {origin['commit']}, {origin['day']}. "
        f"{sum(used)} of the {len(used)} adapters passed the judgement of new adapters; "
        "the others were exported all the same."
    )
    return (
        head
        + "\n".join([*sentences(found), main_table(found), "", measured_at, ""])
        + OTHERS
        + strength_table(found)
        + "\n"
        + CONTROLS.format(first=f"`{OWNERS[0]}`")
        + control_table(found)
        + "\n"
        + tail
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, unless only the page is wanted, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--resume", action="store_true", help="keep what is there")
    parser.add_argument("--page", action="store_true", help="only the page")
    given = parser.parse_args(arguments)
    if not given.page:
        measure(given.resume)
    PAGE.write_text(page(json.loads((RESULTS / f"{NAME}.json").read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
