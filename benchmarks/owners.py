"""Twenty owners' histories of different kinds, personalised as an owner does it.

    python benchmarks/owners.py [--backbone NAME] [--owners N] [--resume]

`benchmarks/owners/` has the histories, one file per owner; the owners are invented. For
each the commands of an owner run as processes, with default settings: `vault init`,
`import`, `personalize`, `export-adapter`, `generate`. The newest 6 texts are kept out of
the import, so neither the training nor the decision whether the adapter is used has seen
them. Measured:

- `personalize`: seconds, CPU seconds, the most memory (VmHWM), the time to its first line
  of progress, and whether the adapter is used;
- on the 6 unseen texts, by the library on the exported adapter: the negative
  log-likelihood (NLL) per token by the shared and by the personal model, and what both
  write at the prompts: ROUGE-L, loops, empty outputs, outputs that did not end, copies.

No server is involved, so the shared model is the bare backbone. An adapter that is not
used is measured too. Writes one file per owner into benchmarks/results/owners-BACKBONE/
(`--resume` keeps those that are there and whose history has not changed), and
docs/owners.md as soon as every owner has one, unless the backbone is the built-in one.
"""

import argparse
import hashlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from report import RESULTS, ROOT, origin, printed

OWNERS = ROOT / "benchmarks" / "owners"
PAGE = ROOT / "docs" / "owners.md"
UNSEEN = 6  # newest texts of an owner that are not imported
TOKENS = 96  # of an output, at most: the longest text here has 75 of SmolLM2's
POLL = 0.05  # seconds between two looks at a process's memory
# An output loops if more than half of its pieces of so many characters stood in it before.
# Texts of fewer characters than `SHORT` do not: "ha ha ha ha" is none.
PIECE, SHORT = 10, 40
FEWEST_USED = 15  # adapters that are to be used, of 20
CUT = 220  # characters of a text on the page


# --- the histories ---------------------------------------------------------------------


def names() -> list[str]:
    """Return the owners' names, in order."""
    return sorted(path.stem for path in OWNERS.glob("*.jsonl"))


def rows_of(name: str) -> list[dict[str, str]]:
    """Return an owner's pairs, ``prompt`` and ``target``, oldest first."""
    lines = (OWNERS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def parted(
    rows: Sequence[dict[str, str]],
) -> tuple[Sequence[dict[str, str]], Sequence[dict[str, str]]]:
    """Part a history into what is imported, and what is kept out of the import."""
    return rows[:-UNSEEN], rows[-UNSEEN:]


def digest(name: str) -> str:
    """Hash of an owner's history."""
    return hashlib.sha256((OWNERS / f"{name}.jsonl").read_bytes()).hexdigest()[:16]


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write pairs as JSON lines."""
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# --- what an owner types ---------------------------------------------------------------


class Device:
    """One owner's vault below an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "passphrase").write_text("twenty quiet owners on a benchmark\n")

    def words(self, *command: str) -> list[str]:
        """Return the command line of a command of `idiolect`."""
        vault, key = self.folder / "vault.db", self.folder / "passphrase"
        options = ("--json", "--vault", str(vault), "--passphrase-file", str(key))
        return [sys.executable, "-m", "idiolect.client.cli", *command, *options]

    def run(self, *command: str, given: str = "") -> Any:
        """Run a command to its end; return what it says as JSON.

        Raises
        ------
        RuntimeError
            It failed.
        """
        done = subprocess.run(
            self.words(*command), input=given, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"idiolect {command[0]}: {done.stderr[-500:]}")
        return json.loads(done.stdout)

    def watch(self, *command: str) -> dict[str, Any]:
        """Run a command to its end, and watch what it costs.

        Returns
        -------
        dict
            ``seconds``, ``cpu`` (CPU seconds), ``bytes`` (the largest resident set),
            ``first`` (seconds to the first line on standard error; None: there was none),
            ``code``, and what it ``said`` as JSON.

        Raises
        ------
        RuntimeError
            It failed. Exit code 1 is no failure: the adapter is not used.
        """
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        heard: list[tuple[float, str]] = []
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen(
                self.words(*command), stdout=out, stderr=subprocess.PIPE, text=True
            )

            def listen() -> None:
                for line in process.stderr or ():
                    heard.append((time.monotonic() - began, line))

            listener, most = threading.Thread(target=listen), 0
            listener.start()
            while process.poll() is None:
                most = max(most, peak(process.pid))
                time.sleep(POLL)
            seconds = time.monotonic() - began
            listener.join()
            out.seek(0)
            text = out.read()
        if process.returncode not in (0, 1):
            said = "".join(line for _, line in heard)
            raise RuntimeError(f"idiolect {command[0]}: {said[-500:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        first = next((at for at, line in heard if line.strip()), None)
        return {
            "seconds": seconds,
            "cpu": cpu,
            "bytes": most,
            "first": first,
            "code": process.returncode,
            "said": json.loads(text),
        }


def peak(pid: int) -> int:
    """The largest resident set of a process so far, in bytes; 0: it has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


# --- one owner -------------------------------------------------------------------------


def measured(name: str, backbone: str) -> dict[str, Any]:
    """Make an owner's vault, train, and measure; all in a temporary folder."""
    known, unseen = parted(rows_of(name))
    with tempfile.TemporaryDirectory() as place:
        device = Device(Path(place))
        history, kept = Path(place) / f"{name}.jsonl", Path(place) / "unseen.jsonl"
        write_rows(history, known)
        write_rows(kept, unseen)
        device.run("vault", "init", "--backbone", backbone)
        imported = device.run("import", str(history))
        cost = device.watch("personalize")
        said = cost.pop("said")
        # One that is not used is measured too; the owner could use it all the same.
        device.run("use", str(said["number"]))
        device.run("export-adapter", str(Path(place) / "adapter"))
        judged = printed(__file__, "--backbone", backbone, "--judge", place)
        command = generated(device, unseen[-1]["prompt"])
    texts = {row["target"] for row in known}
    return {
        "owner": name,
        "history": digest(name),
        "backbone": Path(backbone).name,
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "imported": imported["new"],
        "personalize": cost,
        "version": {n: v for n, v in said.items() if not isinstance(v, list | dict)},
        "reason": reason(said),
        **summary(judged, texts),
        "command_agrees": plain(command) == plain(judged["personal"]["texts"][-1]),
        "origin": origin(),
    }


def generated(device: Device, prompt: str) -> str:
    """Return what `idiolect generate` writes at a prompt with the adapter in use."""
    length = ("--max-new-tokens", str(TOKENS))
    if prompt:
        return device.run("generate", "-", *length, given=prompt)["personal"]
    return device.run("generate", "", *length)["personal"]


def reason(version: Mapping[str, Any]) -> str:
    """Why an adapter is not used; empty: it is."""
    if version["accepted"]:
        return ""
    if version.get("fault"):
        return str(version["fault"])
    without = min(version["nll_before"], version["nll_bare"])
    return "worse than without" if version["nll"] > without else "worse than before"


def judge(backbone_name: str, place: Path) -> dict[str, Any]:
    """Score and continue the unseen pairs with the shared and with the personal model.

    Returns
    -------
    dict
        The owner's ``rows``; for ``shared`` and ``personal``: ``logp`` (the sum over a
        text's tokens, in nats), ``texts``, and whether each ``ended``; ``tokens`` of each
        own text, its end included.
    """
    import idiolect
    from idiolect.common.data.types import Item, Prompt
    from idiolect.common.engine.scoring import generate
    from idiolect.common.methods.acceptance import REPETITION

    lines = (place / "unseen.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    pairs = [(row["prompt"], row["target"]) for row in rows]
    found: dict[str, Any] = {"rows": rows}
    for name, adapter in (("shared", None), ("personal", place / "adapter")):
        model = idiolect.load(backbone_name, shared=adapter)
        backbone = model.reference.backbone
        room = min(TOKENS, backbone.context // 2)

        def count(prompt: str, text: str, backbone: Any = backbone) -> int:
            return len(backbone.completion(Item("", Prompt("", prompt), text)))

        asked = [
            backbone.encode_prompt(Prompt("", prompt), backbone.context - room, "")[0]
            for prompt, _ in pairs
        ]
        shared = [model.reference.shared]
        texts = generate(backbone, shared, asked, room, repetition=REPETITION)
        written = zip(pairs, texts, strict=True)
        found["tokens"] = [count(*pair) for pair in pairs]
        found[name] = {
            "logp": model.score(pairs),
            "texts": texts,
            "ended": [count(prompt, text) <= room for (prompt, _), text in written],
        }
    return found


def summary(judged: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """What a result says of the unseen texts: numbers of both models, and the texts.

    Parameters
    ----------
    judged
        What `judge` returned.
    known
        The texts that were imported.
    """
    from idiolect.common.data.load import task_of
    from idiolect.common.data.metrics import UNICODE, score

    own, tokens = [row["target"] for row in judged["rows"]], judged["tokens"]
    learnt = {plain(text) for text in known}
    found: dict[str, Any] = {}
    for name in ("shared", "personal"):
        one = judged[name]
        texts = one["texts"]
        found[name] = {
            "nll": -sum(one["logp"]) / sum(tokens),
            "rouge-l": score(task_of("text"), texts, own, UNICODE)["rouge-l"],
            "loops": sum(map(loops, texts)),
            "empty": sum(not text.strip() for text in texts),
            "endless": sum(not ended for ended in one["ended"]),
            "copies": sum(plain(text) in learnt for text in texts),
        }
    both = zip(judged["shared"]["logp"], judged["personal"]["logp"], strict=True)
    found["better"] = sum(new > old for old, new in both)
    found["texts"] = [
        {**row, "shared": old, "personal": new}
        for row, old, new in zip(
            judged["rows"],
            judged["shared"]["texts"],
            judged["personal"]["texts"],
            strict=True,
        )
    ]
    return found


def loops(text: str) -> bool:
    """Whether an output repeats itself: more than half of its pieces stood there before."""
    dense = "".join(text.casefold().split())
    if len(dense) < SHORT:
        return False
    pieces = [dense[at : at + PIECE] for at in range(len(dense) - PIECE + 1)]
    return len(set(pieces)) < len(pieces) / 2


def plain(text: str) -> str:
    """Return a text without differences of case and blanks."""
    return " ".join(text.casefold().split())


# --- the page --------------------------------------------------------------------------


def gain(result: Mapping[str, Any]) -> float:
    """By how much the NLL of the unseen texts falls, in nats per token."""
    return result["shared"]["nll"] - result["personal"]["nll"]


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """Return docs/owners.md."""
    origins = [result["origin"] for result in results]
    commits, days = (sorted({o[key] for o in origins}) for key in ("commit", "day"))
    about = (
        f"{len(results)} invented owners, each with a different kind of history "
        "([benchmarks/owners](../benchmarks/owners)), on the backbone "
        f"`{results[0]['backbone']}` with default settings. `python benchmarks/owners.py` "
        "runs an owner's commands and wrote this page. The newest "
        f"{UNSEEN} texts of each are not imported: neither the training nor the decision "
        "whether the adapter is used has seen them. There is no server, so the shared "
        "model is the bare backbone."
    )
    measured_at = (
        f"Measured at {', '.join(commits)}, {', '.join(days)}, on "
        f"{origins[0]['processor']}; OMP_NUM_THREADS: {results[0]['threads'] or 'not set'}."
    )
    blocks = [["# Twenty owners"], [about], [measured_at]]
    blocks += [[*targets(results)], [*table(results)], [*examples(results)]]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def targets(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What was aimed at, and what came out."""
    used = [result for result in results if not result["reason"]]
    looping = [result for result in used if result["personal"]["loops"]]
    worse = [result for result in used if gain(result) < 0]
    outputs = UNSEEN * len(used)
    old, new = (sum(r[m]["loops"] for r in used) for m in ("shared", "personal"))
    yield "| aim | found | met |"
    yield "| --- | --- | --- |"
    yield (
        f"| at least {FEWEST_USED} adapters are used | {len(used)} of {len(results)} | "
        f"{met(len(used) >= FEWEST_USED)} |"
    )
    yield (
        f"| none of these ends in loops | {_named(looping)} ({new} of {outputs} outputs; "
        f"the shared model: {old}) | {met(not looping)} |"
    )
    yield (
        "| none of these is below its shared model on unseen texts | "
        f"{_named(worse)} | {met(not worse)} |"
    )
    costs = [result["personalize"] for result in results]
    seconds, memory = ([c[key] for c in costs] for key in ("seconds", "bytes"))
    firsts = [c["first"] for c in costs if c["first"] is not None]
    yield ""
    first = f"{statistics.median(firsts):.1f} s (median)" if firsts else "none is shown"
    same = sum(result["command_agrees"] for result in results)
    yield (
        f"`personalize` takes {statistics.median(seconds):.0f} s (median; "
        f"{min(seconds):.0f} to {max(seconds):.0f}) and at most {max(memory) / 1e6:.0f} MB "
        f"of memory; seconds depend on what else the machine does, CPU seconds less so. "
        f"First line of progress: {first}. At the newest prompt "
        f"`idiolect generate` writes what the library writes with the exported adapter for "
        f"{same} of {len(results)} owners."
    )


def met(good: bool) -> str:
    """Whether an aim is reached."""
    return "yes" if good else "**no**"


def _named(results: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"`{result['owner']}`" for result in results) or "none"


def table(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One row per owner."""
    yield (
        "NLL (nats per token; lower is better) and ROUGE-L are those of the "
        f"{UNSEEN} unseen texts: shared model -> personal model. *Better* is how many of "
        "them the personal model predicts better. Loops, empty outputs, outputs that had "
        f"not ended after {TOKENS} tokens, and copies of imported texts are counted among "
        f"the {UNSEEN} outputs of the personal model; of the shared model in brackets."
    )
    yield ""
    heads = ("owner", "imported", "used", "s", "CPU s", "MB", "first line", "NLL")
    heads += ("better", "ROUGE-L", "loops", "empty", "not ended", "copies")
    yield f"| {' | '.join(heads)} |"
    yield f"| {' | '.join('---' for _ in heads)} |"
    for result in results:
        cost, old, new = result["personalize"], result["shared"], result["personal"]
        first = "-" if cost["first"] is None else f"{cost['first']:.1f} s"
        cells = [
            f"`{result['owner']}`",
            str(result["imported"]),
            f"no: {result['reason']}" if result["reason"] else "yes",
            f"{cost['seconds']:.0f}",
            f"{cost['cpu']:.0f}",
            f"{cost['bytes'] / 1e6:.0f}",
            first,
            f"{old['nll']:.3f} -> {new['nll']:.3f}",
            f"{result['better']} of {UNSEEN}",
            f"{old['rouge-l']:.2f} -> {new['rouge-l']:.2f}",
            *(f"{new[k]} ({old[k]})" for k in ("loops", "empty", "endless", "copies")),
        ]
        yield f"| {' | '.join(cells)} |"


def examples(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Before and after, for the owners with the best, the median and the worst gain."""
    used = sorted((r for r in results if not r["reason"]), key=gain, reverse=True)
    if not used:
        return
    yield "## Before and after"
    yield ""
    yield (
        "Of the owners whose adapter is used: the one with the best, the median and the "
        "worst gain in NLL on unseen texts. Of each the newest text, which nobody chose."
    )
    chosen = {"Best": 0, "Median": (len(used) - 1) // 2, "Worst": len(used) - 1}
    for title, place in chosen.items():
        result = used[place]
        newest = result["texts"][-1]
        yield ""
        yield f"{title}: `{result['owner']}`, {gain(result):+.3f} nats per token."
        yield ""
        says = {"prompt": "prompt", "shared": "before", "personal": "after"}
        for key, word in {**says, "target": "owner"}.items():
            text = " ".join(newest[key].split())
            text = text if len(text) <= CUT else f"{text[: CUT - 1]}…"
            yield f"    {word + ':':8}{text or '(nothing)'}"


# --- the command -----------------------------------------------------------------------


def kept(path: Path, name: str) -> dict[str, Any] | None:
    """A result that is there, and whose history has not changed since."""
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if found["history"] == digest(name) else None


def line(result: Mapping[str, Any]) -> str:
    """One line about a result."""
    cost = result["personalize"]
    return (
        f"{result['owner']:20} {cost['seconds']:6.1f} s {cost['bytes'] / 1e6:6.0f} MB  "
        f"NLL {result['shared']['nll']:.3f} -> {result['personal']['nll']:.3f}  "
        f"loops {result['personal']['loops']}  {result['reason'] or 'used'}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure owners one after the other; exit code 1 where one failed."""
    parser = argparse.ArgumentParser(description="Twenty owners, personalised.")
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--owners", type=int, metavar="N", help="only the first N")
    parser.add_argument("--resume", action="store_true", help="keep what is there")
    parser.add_argument("--into", type=Path, help="folder of the results")
    parser.add_argument("--judge", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.judge:
        print(json.dumps(judge(given.backbone, given.judge)))
        return 0
    short = Path(given.backbone).name
    folder = given.into or RESULTS / f"owners-{short}"
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in names()[: given.owners]:
        path = folder / f"{name}.json"
        result = kept(path, name) if given.resume else None
        if result is None:
            try:
                result = measured(name, given.backbone)
            except (RuntimeError, SystemExit) as error:  # `printed` exits
                print(f"{name:20} failed: {error}", flush=True)
                failed += 1
                continue
            text = json.dumps(result, indent=1, ensure_ascii=False)
            path.write_text(f"{text}\n", encoding="utf-8")
        print(line(result), flush=True)
    results = [kept(folder / f"{name}.json", name) for name in names()]
    done = [result for result in results if result]
    if len(done) == len(results) and short != "tiny":
        PAGE.write_text(page(done), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
