"""How long people wait: for a report, for the owner's page, and for the first word.

    python benchmarks/waits.py [report] [browser] [word] [--page]

Measures what is named, or all three, each three times; what is not named stays as it was
in ``benchmarks/results/waits.json``. ``--page`` writes the table of docs/page.md. The
report is of a run of 200 users, which is made first. The page is opened in headless
Chromium; that needs the package `playwright`, and $CHROMIUM names the browser, otherwise
`chromium`. The first word is that of the model smollm2 with an adapter, which is trained
first.

CPU seconds are those of all processes that take part, the browser's too: on a busy machine
they say what a wait would be on a quiet one, or on one thread.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, time
from typing import Any

import httpx
from cpu_time import known, spent
from playwright.sync_api import sync_playwright
from report import RESULTS, ROOT, between, save

USERS, TEXTS, TIMES = 200, 5000, 3
RUN = (
    *(f"users={USERS}", "history=8", "development-users=0", "adapt.rounds=1"),
    *("methods=base,shared,sft,c-bpo", "personalise.learning-rates=3e-3"),
)
SHORT = ({"role": "user", "content": "Invite Ann to lunch."},)
TALK = (  # about 200 tokens with what the chat template writes around it
    *SHORT,
    {"role": "assistant", "content": "Ann, lunch on Friday? " * 12},
    {"role": "user", "content": "Shorter, please, and say that I bring the soup. " * 8},
)
TURN = (
    *TALK,
    {"role": "assistant", "content": "Lunch on Friday, Ann? I bring the soup."},
    {"role": "user", "content": "Good. Now the same to Ben."},
)
ROWS = {  # name -> in words, and the most seconds
    "report": (f"the report of a run of {USERS} users", 5.0),
    "report texts": ("the same with `--texts`", 5.0),
    "link": ("`idiolect ui` until its link is there", None),
    "painted 0": ("the page, first painted: new vault", 1.0),
    "shown 0": ("until it says what is next", 1.0),
    f"painted {TEXTS}": (f"the page, first painted: {TEXTS:,} texts", 1.0),
    f"shown {TEXTS}": ("until it says what is next", 1.0),
    f"listed {TEXTS}": ("its list of texts", 1.0),
    "loaded": ("`idiolect serve-local` until it answers", None),
    "first": ("first word of its first answer", None),
    "short": ("first word of a later answer, {short} tokens asked", 0.5),
    "talk": ("first word in a talk that is new to it, {talk} tokens asked", 0.5),
    "turn": ("first word of the next answer of that talk, {turn} tokens asked", 0.5),
    "terminal": ("first letter of `idiolect generate`, model loaded", None),
}
PAGE, FILE = ROOT / "docs" / "page.md", RESULTS / "waits.json"
BEGIN, END = "<!-- waits -->\n", "<!-- end of waits -->\n"
PATIENCE = 300  # seconds


class Watch:
    """Seconds since the last look: of the clock, and of the CPU in all that was started.

    A process that nobody has looked at while what started it ran is not counted.
    """

    def __init__(self) -> None:
        self._own = known(os.getpid())
        self._seen: dict[tuple[int, int], float] = {}
        self.took()

    def took(self) -> tuple[float, float]:
        """Wall and CPU seconds since this was called last."""
        now = perf_counter()
        before = sum(self._seen.values())
        self._seen |= spent(self._own)
        took = now - getattr(self, "_last", now), sum(self._seen.values()) - before
        self._last = perf_counter()
        return took


def command(side: str, *words: str) -> list[str]:
    """A command of idiolect."""
    return [sys.executable, "-m", f"idiolect.{side}.cli", *words]


def done(side: str, *words: str, given: str = "") -> None:
    """Carry out a command; leaves with its errors if it fails."""
    run = subprocess.run(
        command(side, *words), input=given, capture_output=True, text=True
    )
    if run.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{run.stderr[-2000:]}")


@contextmanager
def running(*words: str) -> Iterator[dict[str, Any]]:
    """A command of the device that serves; yields what it says first."""
    with subprocess.Popen(
        command("client", *words, "--port", "0", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()


def vault(folder: Path, backbone: str, texts: int) -> str:
    """A new vault with so many texts; returns its file."""
    (folder / "secret").write_text("seven herons wade past midnight")
    os.environ["IDIOLECT_PASSPHRASE_FILE"] = str(folder / "secret")
    file = str(folder / f"{backbone}-{texts}.db")
    done("client", "vault", "init", "--vault", file, "--backbone", backbone)
    if texts:
        rows = (
            {"prompt": f"Invite guest {n}.", "text": f"Lunch, {n}? Soup's on me."}
            for n in range(texts)
        )
        (folder / "texts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        done("client", "import", str(folder / "texts.jsonl"), "--vault", file)
    return file


# --- the three waits -------------------------------------------------------------------


def report(folder: Path, note: Callable[..., None]) -> None:
    """Make a run, and write its report."""
    keys = [word for key in RUN for word in ("-c", key)]
    where = ("waits", "--output-dir", str(folder))
    done("server", "simulate", *keys, "--name", *where)
    for _ in range(TIMES):
        for name, more in (("report", ()), ("report texts", ("--texts",))):
            before, began = os.times(), perf_counter()
            done("server", "report", *where, *more)
            took, after = perf_counter() - began, os.times()
            spent = sum(after[2:4]) - sum(before[2:4])
            note(name, (took, spent))


PAINTED = """performance.timeOrigin
+ performance.getEntriesByName('first-contentful-paint')[0].startTime"""


def browser(folder: Path, note: Callable[..., None]) -> None:
    """Open the owner's page of a new vault, and of one with many texts."""
    place = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=place, args=["--no-sandbox"])
        for texts in (0, TEXTS):
            file = vault(folder, "tiny", texts)
            for _ in range(TIMES):
                watch = Watch()
                with running("ui", "--vault", file) as said:
                    note("link", watch.took())
                    opened(chromium, said["link"], texts, note)
        chromium.close()


def opened(chromium: Any, link: str, texts: int, note: Callable[..., None]) -> None:
    """Open the page once. The link leads to it by another address, which counts, too."""
    context = chromium.new_context()
    context.set_default_timeout(1000 * PATIENCE)
    tab = context.new_page()
    watch, began = Watch(), time()
    tab.goto(link)
    tab.wait_for_selector("#next-button")
    note(f"shown {texts}", watch.took())
    note(f"painted {texts}", (tab.evaluate(PAINTED) / 1000 - began, None))
    if texts:
        watch.took()
        tab.click("nav a[href='#history']")
        tab.wait_for_selector("#pairs li")
        note(f"listed {texts}", watch.took())
    context.close()


def word(folder: Path, note: Callable[..., None]) -> None:
    """Let the model smollm2 answer, with an adapter."""
    file = vault(folder, "smollm2", 8)
    done("client", "personalize", "--method", "sft", "--vault", file)
    for _ in range(TIMES):
        watch = Watch()
        with running("serve-local", "--vault", file) as said:
            note("loaded", watch.took())
            asked = {"first": SHORT, "short": SHORT, "talk": TALK, "turn": TURN}
            for name, texts in asked.items():
                *took, tokens = answered(said, texts)
                note(name, took, tokens)
    done("client", "settings", "keep-loaded", "10", "--vault", file)
    for number in range(TIMES + 1):
        took = written(file)
        if number:  # the first one loads the model
            note("terminal", took)
    done("client", "settings", "keep-loaded", "0", "--vault", file)  # ends the process


def answered(said: dict[str, Any], texts: Any) -> tuple[float, float, int]:
    """Wall and CPU seconds until the first word of an answer, and tokens of all texts."""
    key = Path(said["key_file"]).read_text().strip()
    body = {"model": "personal", "messages": list(texts), "max_tokens": 8}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    took, tokens = None, 0
    with httpx.Client(
        headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE
    ) as client:
        watch = Watch()
        with client.stream(
            "POST", f"{said['base_url']}/chat/completions", json=body
        ) as came:
            for line in came.iter_lines():
                if not line.startswith("data: {"):
                    continue
                part = json.loads(line.removeprefix("data: "))
                if "error" in part:
                    sys.exit(f"no answer: {part['error']}")
                if any(one["delta"].get("content") for one in part["choices"]):
                    took = took or watch.took()
                tokens = (part.get("usage") or {}).get("prompt_tokens", tokens)
    if took is None:
        sys.exit("the model answered nothing")
    return *took, tokens


def written(file: str) -> tuple[float, float]:
    """Wall and CPU seconds from the start of `generate` to its first letter."""
    watch = Watch()
    with subprocess.Popen(
        command("client", "generate", "-", "--vault", file, "--max-new-tokens", "8"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"Invite Ann to lunch.")
        process.stdin.close()
        if not process.stdout.read(1):
            sys.exit("`idiolect generate` wrote nothing")
        took = watch.took()
        process.stdout.read()
    return took


# --- what is kept, and the page --------------------------------------------------------

PARTS = {"report": report, "browser": browser, "word": word}


def measured(part: str) -> dict[str, Any]:
    """Medians of every wait of a part, and all that was measured."""
    found: dict[str, Any] = {}

    def note(name: str, took: Any, tokens: int | None = None) -> None:
        row = found.setdefault(name, {"wall": [], "cpu": [], "tokens": tokens})
        for key, value in zip(("wall", "cpu"), took, strict=True):
            if value is not None:
                row[key].append(round(value, 3))
        print(part, name, took, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        PARTS[part](Path(folder), note)
    return found


def keep(waits: dict[str, Any]) -> None:
    """Write all waits, with how many threads, and how busy the machine is."""
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    load = round(os.getloadavg()[2], 1)  # of the last 15 minutes
    save("waits", {"threads": threads, "load": load, "waits": waits})


def verdict(wall: list[float], cpu: list[float], most: float) -> str:
    """Whether a target is met, and where it is not, whether CPU seconds alone meet it."""
    if statistics.median(wall) < most:
        return "yes"
    return "**no**; CPU s: yes" if cpu and statistics.median(cpu) < most else "**no**"


def table(found: dict[str, Any]) -> str:
    """The part of the page."""
    waits = found["waits"]
    named = ("short", "talk", "turn")
    tokens = {name: waits.get(name, {}).get("tokens") for name in named}
    where = f"{found['origin']['processor']} with a load of {found['load']}"
    lines = [
        "",
        f"Medians of {TIMES}, on {where}; OMP_NUM_THREADS: {found['threads']}.",
        "",
        "| wait | s | CPU s | target | met |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, (words, most) in ROWS.items():
        if name not in waits:
            continue
        wall, cpu = waits[name]["wall"], waits[name]["cpu"]
        cells = [words.format(**tokens), f"{statistics.median(wall):.2f}"]
        cells.append(f"{statistics.median(cpu):.2f}" if cpu else "")
        cells += ["", ""]
        if most is not None:
            cells[-2:] = f"< {most:g}", verdict(wall, cpu, most)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", ""])


def main() -> None:
    """Measure what is named, or all, and write the page if asked to."""
    parser = argparse.ArgumentParser(description="How long people wait.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--page", action="store_true", help="write the table")
    given = parser.parse_args()
    if unknown := set(given.parts) - PARTS.keys():
        parser.error(f"there is no {unknown.pop()}: take {', '.join(PARTS)}")
    for part in given.parts or PARTS:
        found = measured(part)
        before = json.loads(FILE.read_text())["waits"] if FILE.exists() else {}
        keep(before | found)
    if given.page:
        made = table(json.loads(FILE.read_text()))
        PAGE.write_text(between(PAGE.read_text(), BEGIN, END, made))


if __name__ == "__main__":
    main()
