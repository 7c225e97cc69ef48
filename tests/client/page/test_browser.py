"""The page in a real browser, served by the real command, on the built-in backbone.

Skipped where there is no Chromium, or no driver of it (the package `playwright`).
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idiolect.client.owner import adapters, history
from idiolect.client.owner.history import Entry
from idiolect.client.owner.keys import Passphrase
from idiolect.client.owner.limits import alone
from idiolect.client.owner.vault import Vault
from idiolect.common.data.types import Prompt

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium"),
]

SECRET = "seven herons wade past midnight"
PARTS = ("start", "history", "train", "try", "adapters", "leaves")
HOSTILE = '<img src=x onerror="window.hacked=1"></p><script>window.hacked=2</script>'
LONG = 180_000  # ms: a machine may be busy


class Served:
    """`idiolect ui` over a vault."""

    def __init__(self, home: Path) -> None:
        self.home, self.vault = home, home / "device" / "vault.db"
        (home / "secret").write_text(SECRET)
        environment = os.environ | {
            "IDIOLECT_HOME": str(home),
            "IDIOLECT_PASSPHRASE_FILE": str(home / "secret"),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "idiolect.client.cli", "ui"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()
        self.link = self.process.stdout.readline().strip()

    def opened(self) -> Vault:
        return Vault.open(self.vault, Passphrase(SECRET))

    def end(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(how)
        _, said = self.process.communicate(timeout=120)
        return self.process.returncode, said


def made(home: Path) -> Path:
    (home / "device").mkdir(parents=True)
    with Vault.create(home / "device" / "vault.db", Passphrase(SECRET)):
        return home


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    one = Served(made(tmp_path_factory.mktemp("owner") / "home"))
    yield one
    if one.process.poll() is None:
        one.end()


@pytest.fixture(scope="module")
def context(served: Served) -> Iterator[Any]:
    """A browser that has used the link; `asked` has the addresses of all requests."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        context = browser.new_context()
        context.set_default_timeout(LONG)
        playwright.expect.set_options(timeout=LONG)
        context.asked = []
        context.on("request", lambda request: context.asked.append(request.url))
        tab = context.new_page()
        # The link's page leads on at once, which would interrupt waiting for its load.
        tab.goto(served.link, wait_until="commit")
        tab.wait_for_url(re.compile(r"/[\w-]{20,}/$"))
        context.address = tab.url
        tab.close()
        yield context
        browser.close()


@pytest.fixture
def tab(context: Any) -> Iterator[Any]:
    """A tab in which no script fails and nothing is refused by the policy."""
    tab = context.new_page()
    wrong: list[str] = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on(
        "console", lambda said: wrong.append(said.text) if said.type == "error" else 0
    )
    tab.goto(context.address)
    expect(tab, "#next-button").to_be_visible()
    yield tab
    tab.close()
    assert [one for one in wrong if "Failed to load resource" not in one] == []


def expect(tab: Any, selector: str) -> Any:
    return playwright.expect(tab.locator(selector))


def show(tab: Any, part: str) -> None:
    tab.click(f"nav a[href='#{part}']")
    expect(tab, f"#{part}").to_be_visible()


def said(tab: Any, words: str) -> None:
    expect(tab, "#said").to_contain_text(words)


# --- from nothing to a model -----------------------------------------------------------


def test_a_newcomer_gets_a_model_by_what_the_page_says(
    tab: Any, served: Served
) -> None:
    tab.click("#next-button")
    tab.click("#example")
    expect(tab, "#preview-count").to_have_text("32 texts would be added.")
    tab.click("#preview-add")
    said(tab, "32 texts added")
    tab.click("#said a")
    expect(tab, "#train-few").to_contain_text("It learns from 26 of your 32 texts")
    tab.click("#train-start")
    expect(tab, "#train-busy").to_be_visible()
    expect(tab, "#train-verdict").to_contain_text("Adapter 1 is in use")
    tab.click("#train-try")
    tab.click("#prompt-mine")
    expect(tab, "#prompt").not_to_have_value("")
    tab.click("#try-start")
    expect(tab, "#try-busy").to_have_text("Written.")
    texts = [tab.inner_text(f"#{name}") for name in ("personal", "shared")]
    assert all(texts) and texts[0] != texts[1]
    tab.locator("#strength").fill("0")
    tab.click("#try-start")
    expect(tab, "#judge").to_be_visible()
    expect(tab, "#personal").to_have_text(texts[1])
    tab.click("#judge .down")
    said(tab, "learns to avoid")
    with served.opened() as vault:
        (mine,) = [e for e in history.entries(vault) if e.source == "by hand"]
        assert mine.target == texts[1] and not mine.liked
        assert adapters.in_use(vault).strength == 1, "the slider alone keeps nothing"


def test_a_training_is_stopped_in_one_tab_and_seen_in_another(
    tab: Any, context: Any, served: Served
) -> None:
    other = context.new_page()
    other.goto(f"{context.address}#train")
    show(tab, "train")
    tab.click("#train-start")
    expect(tab, "#train-stop").to_be_visible()
    other.click("#train-start")
    expect(other, "#wrong").to_contain_text("A training is running")
    other.reload()
    expect(other, "#train-stop").to_be_visible()
    other.click("#train-stop")
    for one in (tab, other):
        expect(one, "#train-start").to_be_visible()
        said(one, "goes on where")
    other.close()
    with served.opened() as vault, alone(served.vault):
        assert vault.check() > 0 and adapters.active(vault) == 1


def test_forgetting_says_what_it_costs_and_can_be_left(
    tab: Any, served: Served
) -> None:
    show(tab, "history")
    tab.click("#sources button >> nth=0")
    expect(tab, "#ask-text").to_contain_text("32 texts will be gone for good")
    expect(tab, "#ask-text").to_contain_text("Adapter 1 has learnt from it")
    expect(tab, "#ask-no").to_be_focused()
    tab.keyboard.press("Escape")
    expect(tab, "#ask").to_be_hidden()
    with served.opened() as vault:
        assert adapters.active(vault) == 1
    tab.click("#sources button >> nth=0")
    tab.uncheck("#ask-train")
    tab.click("#ask-yes")
    said(tab, "32 texts forgotten")
    with served.opened() as vault:
        assert adapters.versions(vault) == [] and len(history.entries(vault)) == 1


# --- hostile text ----------------------------------------------------------------------


def test_hostile_text_is_shown_and_does_nothing(
    tab: Any, served: Served, tmp_path: Any
) -> None:
    with served.opened() as vault:
        pairs = [Entry(Prompt("", HOSTILE), f"{HOSTILE} {n}") for n in range(5)]
        history.add(vault, pairs, HOSTILE)
    show(tab, "history")
    expect(tab, "#sources").to_contain_text("onerror")
    expect(tab, "#pairs").to_contain_text(f"{HOSTILE} 4")
    file = tmp_path / "<img src=x onerror=window.hacked=3>.csv"
    file.write_text(
        'prompt,target,"<img src=x>"\n"<b>","<svg onload=window.hacked=4>",1\n'
    )
    tab.set_input_files("#file", file)
    expect(tab, "#preview-pairs").to_contain_text("<svg onload")
    expect(tab, "#preview-report").to_contain_text("<img src=x>")
    tab.click("#preview-drop")
    tab.locator("#pairs button", has_text="Forget").first.click()
    expect(tab, "#ask").to_be_visible()
    tab.click("#ask-no")
    assert inert(tab)


def test_what_the_model_writes_is_shown_and_does_nothing(tab: Any) -> None:
    overview = tab.evaluate(
        "async () => (await fetch('api/overview', {method: 'POST', body: '{}',"
        " headers: {'content-type': 'application/json'}})).json()"
    )
    one = {"number": 1, "active": True, "accepted": True, "learnt": HOSTILE}
    one |= {"numbers": HOSTILE, "verdict": HOSTILE, "strength": 1}
    change = dict.fromkeys(("asked", "before", "after", "own"), HOSTILE)
    outcome = {"number": 1, "accepted": True, "verdict": HOSTILE, "doubts": [HOSTILE]}
    overview["training"]["outcome"] = {**outcome, "changes": [change]}
    overview |= {"active": 1, "adapters": [one], "vault": HOSTILE, "backbone": HOSTILE}
    overview["sent"] = [
        dict.fromkeys(("when", "bytes", "what", "run", "cover"), HOSTILE)
    ]
    overview["leaves"]["server"] = HOSTILE
    pieces = [HOSTILE[n : n + 7] for n in range(0, len(HOSTILE), 7)]
    lines = "".join(
        f"{__import__('json').dumps({'name': name, 'piece': piece})}\n"
        for name in ("personal", "shared")
        for piece in pieces
    )
    tab.route("**/api/overview", lambda route: route.fulfill(json=overview))
    tab.route("**/api/warm", lambda route: route.fulfill(json={}))
    tab.route("**/api/write", lambda route: route.fulfill(body=lines))
    tab.reload()
    for part in PARTS:
        show(tab, part)
    show(tab, "try")
    tab.fill("#prompt", HOSTILE)
    tab.click("#try-start")
    for name in ("personal", "shared"):
        expect(tab, f"#{name}").to_have_text(HOSTILE)
    show(tab, "train")
    expect(tab, "#train-changes").to_contain_text(HOSTILE)
    assert inert(tab)


def inert(tab: Any) -> bool:
    """Whether no text has become an element, or was carried out."""
    found = tab.evaluate(
        "() => [window.hacked, document.images.length, document.scripts.length,"
        " document.querySelectorAll('svg, iframe, b, main script').length]"
    )
    return found == [None, 0, 1, 0]


def test_nothing_was_asked_for_elsewhere(context: Any) -> None:
    server = context.address.split("/", 3)[2]
    assert {url.split("/", 3)[2] for url in context.asked} == {server}


# --- for everybody ---------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_finding_of_axe(tab: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tab.emulate_media(color_scheme=scheme)
    for part in PARTS:
        show(tab, part)
        tab.evaluate(
            "document.querySelectorAll('details').forEach(d => {d.open = true})"
        )
        found = axe.run(tab).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        shown = [(one["id"], [n["html"][:90] for n in one["nodes"]]) for one in serious]
        assert shown == [], part


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(tab: Any, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 700})
    for part in PARTS:
        show(tab, part)
        inner = tab.evaluate("document.documentElement.scrollWidth")
        assert inner <= width, part


def test_the_keyboard_is_enough(tab: Any) -> None:
    tab.keyboard.press("Tab")
    expect(tab, ".skip").to_be_focused()
    reached = []
    for _ in range(7):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.getAttribute('href')"))
    assert reached[:6] == [f"#{part}" for part in PARTS]
    tab.locator("nav a[href='#history']").focus()
    tab.keyboard.press("Enter")
    expect(tab, "#history-title").to_be_focused()
    summary = tab.locator("summary", has_text="Write one by hand")
    summary.focus()
    tab.keyboard.press("Enter")
    tab.keyboard.press("Tab")
    tab.keyboard.type("Anything?")
    tab.keyboard.press("Tab")
    tab.keyboard.type("By the keyboard alone.")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    said(tab, "Added.")
    expect(tab, "#pairs").to_contain_text("By the keyboard alone.")


def test_an_error_is_said_where_a_screen_reader_hears_it(
    tab: Any, tmp_path: Path
) -> None:
    show(tab, "history")
    file = tmp_path / "two.jsonl"
    file.write_text('{"user": "ann", "text": "mine"}\n{"user": "bob", "text": "his"}\n')
    tab.set_input_files("#file", file)
    alert = tab.get_by_role("alert")
    playwright.expect(alert).to_contain_text("two.jsonl holds 2 users")
    tab.fill("#user", "ann")
    tab.click("#file-read")
    expect(tab, "#preview-title").to_be_focused()
    playwright.expect(alert).to_be_empty()
    tab.click("#preview-drop")


def test_a_file_is_dropped_on_the_page(tab: Any) -> None:
    show(tab, "history")
    given = tab.evaluate_handle(
        """() => {
            const data = new DataTransfer();
            data.items.add(new File(['{"text": "dropped"}'], "dropped.jsonl"));
            return data;
        }"""
    )
    for kind in ("dragover", "drop"):
        tab.dispatch_event("#file-form", kind, {"dataTransfer": given})
    expect(tab, "#preview-count").to_have_text("1 text would be added.")
    tab.click("#preview-drop")
    said(tab, "Nothing was added")


# --- the end ---------------------------------------------------------------------------


def test_the_server_ends_in_the_middle_of_a_training_and_the_vault_is_whole(
    tab: Any, served: Served
) -> None:
    with served.opened() as vault:
        before = len(adapters.versions(vault))
        pairs = [Entry(Prompt("", f"{n}?"), f"Number {n}!") for n in range(8)]
        history.add(vault, pairs, "numbers")
    show(tab, "train")
    tab.click("#train-start")
    expect(tab, "#train-busy").to_be_visible()
    expect(tab, "#train-words").to_contain_text("model")
    worker = int(
        (served.vault.parent / f".{served.vault.name}.training").read_text().split()[0]
    )
    code, errors = served.end()
    assert code == 0 and "Traceback" not in errors
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()
    with served.opened() as vault, alone(served.vault):
        assert vault.check() > 0 and len(adapters.versions(vault)) == before
    tab.click("nav a[href='#start']")
    expect(tab, "#wrong").to_contain_text("Start `idiolect ui` again")
    tab.unroute_all()
