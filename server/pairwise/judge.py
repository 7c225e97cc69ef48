"""Ask a judge about all pairs of a run, keep each answer, and write ``judge.json``.

Answers are lines of ``judge/answers.jsonl`` in the run's folder: a hash of the question,
the verdict and the model's name, no text. A command that was interrupted goes on after
them. An answer without a verdict is not kept: the same command asks again.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...common.errors import IdiolectError, refuse_if
from ...common.files import private, private_folder
from ...common.text import printable, shown
from ..run.results import FEW_USERS, write_json
from .endpoint import Endpoint, ask, body_of, client_of
from .material import Material, methods_of, pairs_of
from .question import Pair, messages, speaks_to_judge, verdict_of
from .tally import Judged, agreement, tally

NAME = "judge.json"
ANSWERS = "judge/answers.jsonl"
HOPELESS = 8  # answers, the first of a command, none of which has a verdict
EVERY = 50  # questions between two lines of progress
Say = Callable[[str], None]
Answer = tuple[str | None, str]
"""A verdict, or None, and what the server calls its model."""


@dataclass(frozen=True)
class Asked:
    """What is compared, and what the judge sees.

    Attributes
    ----------
    pairs
        ``ONE,OTHER`` each; none: the pairs that the run compares.
    items
        Prompts of each user, at most.
    own
        Texts of the user that the judge sees.
    reference
        Whether it sees what the user wrote at the prompt.
    """

    pairs: tuple[str, ...] = ()
    items: int = 4
    own: int = 5
    reference: bool = False


def judge(
    material: Material, endpoint: Endpoint, asked: Asked, say: Say = print
) -> dict[str, Any]:
    """Compare outputs, and return the judge's part of ``judge.json``.

    Raises
    ------
    IdiolectError
        The model cannot be asked (`endpoint.ask`), it gives no verdicts, or nothing is to
        be compared. Answers until then are kept.
    """
    refuse_if(asked.items < 1, f"--items {asked.items} is none: use 1 or more.")
    refuse_if(asked.own < 0, f"--own {asked.own} is no number of texts: use 0 or more.")
    compared = {
        pair: pairs_of(material, *pair, asked.items, asked.own, asked.reference)
        for pair in methods_of(material, asked.pairs)
    }
    every = [one for pairs in compared.values() for one in pairs if not one.same]
    known = read_answers(material.folder / ANSWERS)
    questions = {_key(endpoint, one, s) for one in every for s in (False, True)}
    left = len(questions - known.keys())
    say(
        f"asking {printable(endpoint.model)} {left} questions: both orders of {len(every)} "
        f"pairs of outputs that differ; {len(questions) - left} are answered already"
    )
    with _asking(material.folder, endpoint, known, left, say) as put:
        judged = {
            f"{one} - {other}": [_judged(pair, put) for pair in pairs]
            for (one, other), pairs in compared.items()
        }
        malformed, names = put.malformed, sorted(put.names)
    seed = int(material.results["run"].get("seed") or 0)
    rows: dict[str, Any] = {}
    for (one, other), found in zip(compared, judged.values(), strict=True):
        row = tally(found, seed)
        agrees = agreement(row["users"], material.results["users"], one, other)
        spoken = sum(map(speaks_to_judge, compared[one, other]))
        rows[f"{one} - {other}"] = row | {"spoken": spoken, "agrees": agrees}
    entry = {
        "model": endpoint.model,
        "answered-by": names,
        "endpoint": endpoint.address,
        "reference": asked.reference,
        "own": asked.own,
        "items": asked.items,
        "malformed": malformed,
        "pairs": rows,
    }
    _write(material.folder / NAME, entry)
    return entry


def _judged(pair: Pair, put: "Asking") -> Judged:
    if pair.same:
        return Judged(pair.user, same=True)
    return Judged(pair.user, put(pair, False), put(pair, True))


def _key(endpoint: Endpoint, pair: Pair, swapped: bool) -> str:
    """Hash of all that an answer depends on."""
    body = body_of(endpoint, messages(pair, swapped))
    text = json.dumps([endpoint.address, body], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(eq=False)
class Asking:
    """Asks one question after the other, unless its answer is known.

    Attributes
    ----------
    post
        Sends a request; returns the answer and what the server calls its model.
    keep
        Takes the hash of a question and its answer.
    endpoint, known, left, say
        Whom, what was answered before, how many questions are left, and who hears of it.
    answered, malformed
        Answers of this command, and those of them without a verdict.
    names
        What the server called its model.
    """

    post: Callable[[dict[str, Any]], tuple[str, str]]
    keep: Callable[[str, Answer], None]
    endpoint: Endpoint
    known: dict[str, Answer]
    left: int
    say: Say
    answered: int = 0
    malformed: int = 0
    names: set[str] = field(default_factory=set)

    def __call__(self, pair: Pair, swapped: bool) -> str | None:
        """Return the verdict, or None where there is none."""
        key = _key(self.endpoint, pair, swapped)
        if key not in self.known:
            self.known[key] = self._asked(key, pair, swapped)
        verdict, name = self.known[key]
        self.names.add(name)
        return verdict

    def _asked(self, key: str, pair: Pair, swapped: bool) -> Answer:
        said, name = self.post(body_of(self.endpoint, messages(pair, swapped)))
        answer = verdict_of(said), printable(name, 200)
        self.answered += 1
        if answer[0] is None:
            self.malformed += 1
        else:
            self.keep(key, answer)
        refuse_if(
            self.malformed == self.answered == HOPELESS,
            f"none of the first {HOPELESS} answers of "
            f"{printable(self.endpoint.model, 200)} has a verdict (the last one is "
            f"“{printable(said, 120)}”): take a model that follows instructions.",
        )
        if not self.answered % EVERY:
            self.say(f"{self.answered} of {self.left} answered")
        return answer


@contextlib.contextmanager
def _asking(
    folder: Path, endpoint: Endpoint, known: dict[str, Answer], left: int, say: Say
) -> Iterator[Asking]:
    """Open client and file of answers; an error says that answers are kept."""
    path = folder / ANSWERS
    private_folder(path.parent)
    with client_of(endpoint) as client, open(path, "ab+", opener=private) as stream:
        if stream.tell() and not _ends_a_line(path):
            stream.write(b"\n")  # behind a line that a crash has torn

        def keep(key: str, answer: Answer) -> None:
            line = json.dumps({"key": key, "verdict": answer[0], "by": answer[1]})
            stream.write(f"{line}\n".encode())
            stream.flush()

        def post(body: dict[str, Any]) -> tuple[str, str]:
            return ask(client, endpoint, body)

        put = Asking(post, keep, endpoint, known, left, say)
        try:
            yield put
        except IdiolectError as error:
            kept = put.answered - put.malformed
            if not kept:
                raise
            raise IdiolectError(
                f"{str(error).rstrip('.')}; {kept} new answers are kept, and the same "
                "command asks the rest."
            ) from None


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read() == b"\n"


def read_answers(path: Path) -> dict[str, Answer]:
    """Question -> answer, of what was answered before; a torn line counts as nothing."""
    found: dict[str, Answer] = {}
    if path.exists():
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                one = json.loads(line)
                if one["verdict"] in ("A", "B", "TIE"):
                    found[str(one["key"])] = one["verdict"], str(one["by"])
    return found


def _write(path: Path, entry: Mapping[str, Any]) -> None:
    """Put an entry in the place of the last one by the same judge."""
    same = ("model", "endpoint", "reference", "own", "items")
    others = [one for one in read(path) if any(one.get(k) != entry[k] for k in same)]
    write_json(path, {"judges": [*others, entry]})


def read(path: Path) -> list[dict[str, Any]]:
    """Return the entries of ``judge.json``; none where it is not there or damaged."""
    try:
        found = json.loads(path.read_text())["judges"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    every = found if isinstance(found, list) else []
    return [one for one in every if isinstance(one, dict)]


def lines(entry: Mapping[str, Any]) -> list[str]:
    """Return what the command prints of an entry."""
    entry = shown(entry)
    rows = entry["pairs"]
    found = [f"win rates by {entry['model']} [95 % interval over users]"]
    width = max(map(len, rows))
    for name, row in rows.items():
        rate = row["win-rate"]
        if rate is None:
            found.append(f"  {name:{width}}  nothing was judged")
            continue
        ends = rate["ci95"]
        interval = f"[{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "[no interval]"
        found.append(
            f"  {name:{width}}  {rate['mean']:.2f} {interval}  {row['wins']} won, "
            f"{row['losses']} lost, {row['ties']} ties ({row['same']} of equal outputs), "
            f"{rate['n']} users"
        )
    asked = sum(row["asked"] for row in rows.values())
    followed = sum(row["followed"] for row in rows.values())
    first = sum(row["first"] for row in rows.values())
    if asked:
        where = f", {first} times to the first place" if followed else ""
        found.append(
            f"position: in {followed} of {asked} pairs ({followed / asked:.0%}) the "
            f"verdict followed the order{where}; such pairs are ties"
        )
    if unjudged := sum(row["unjudged"] for row in rows.values()):
        found.append(
            f"{unjudged} pairs count nowhere: {entry['malformed']} answers of this command "
            "had no verdict"
        )
    if spoken := sum(row["spoken"] for row in rows.values()):
        found.append(
            f"{spoken} pairs have an output that seems to ask for a verdict: look at them, "
            "since a judge may follow it"
        )
    for name, row in rows.items():
        agrees = ", ".join(f"{m} {one['rho']:+.2f}" for m, one in row["agrees"].items())
        if agrees:
            found.append(f"agrees over users (rank correlation), {name}: {agrees}")
    if any((row["win-rate"] or {}).get("n", 0) < FEW_USERS for row in rows.values()):
        found.append(f"fewer than {FEW_USERS} users: intervals are too narrow")
    return found
