"""Take the pictures of the owner's page and of a report that the docs show.

    python benchmarks/screenshots.py [page] [report]

For the page a made-up person's texts are added, a model is trained and tried, in a vault
that is thrown away; it also says how long the page took until it was painted, and the steps
of a new owner. For the report a small simulation is run. Without words, both. Needs the
package `playwright`; $CHROMIUM names the browser, otherwise `chromium`.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from idiolect.client.page.uploads import invented

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
MOST = 150_000  # bytes of a picture
DESKTOP: Any = {"width": 1000, "height": 760}
PHONE: Any = {"width": 360, "height": 740}
PATIENCE = 300_000  # ms


@contextmanager
def served(home: Path) -> Iterator[str]:
    """`idiolect ui` over a new vault; yields its link."""
    (home / "secret").write_text("seven herons wade past midnight")
    environment = os.environ | {
        "HOME": str(home),
        "IDIOLECT_PASSPHRASE_FILE": str(home / "secret"),
    }
    environment.pop("IDIOLECT_HOME", None)
    command = [sys.executable, "-m", "idiolect.client.cli"]
    subprocess.run([*command, "vault", "init"], env=environment, check=True)
    with subprocess.Popen(
        [*command, "ui"], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.stdout.readline().strip()
        process.terminate()


def kept(tab: Any, name: str, whole: bool = False) -> None:
    """Keep a picture of a tab, with few enough colours for its size."""
    tab.evaluate("document.activeElement.blur()")
    data = tab.screenshot(full_page=whole)
    image = Image.open(io.BytesIO(data)).convert("RGB").quantize(128)
    path = PICTURES / f"{name}.png"
    image.save(path, optimize=True)
    size = path.stat().st_size
    assert size <= MOST, f"{name} has {size} bytes"
    print(f"{path.relative_to(ROOT)}: {size} bytes")


def a_file(folder: Path) -> Path:
    """A file of texts, with a column that is not read."""
    file = folder / "my headlines.jsonl"
    rows = (
        {"prompt": one.prompt.text, "text": one.target, "clicks": 10 * number}
        for number, one in enumerate(invented().entries)
    )
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def a_new_owner(tab: Any, link: str, file: Path) -> None:
    """From nothing to a model, by what the page says; says when each step was done."""
    began = perf_counter()

    def done(step: str) -> None:
        print(f"{perf_counter() - began:6.1f} s  {step}")

    tab.goto(link)
    expect(tab.locator("#next-button")).to_be_visible()
    painted = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    done(f"the page is there; first painted after {tab.evaluate(painted):.0f} ms")
    kept(tab, "page-start")
    tab.click("#next-button")
    tab.set_input_files("#file", file)
    expect(tab.locator("#preview")).to_be_visible()
    done("a file was read")
    kept(tab, "page-import", whole=True)
    tab.click("#preview-add")
    expect(tab.locator("#said")).to_contain_text("added")
    tab.click("#said a")
    tab.click("#train-start")
    expect(tab.locator("#train-verdict")).to_contain_text("in use")
    done("trained")
    kept(tab, "page-train", whole=True)
    tab.click("#train-try")
    tab.click("#prompt-mine")
    tab.click("#try-start")
    expect(tab.locator("#try-busy")).to_have_text("Written.")
    done("written")
    kept(tab, "page-try")


def of_the_page(browser: Any, home: Path) -> None:
    """Take the pictures of the owner's page."""
    with served(home) as link:
        context = browser.new_context(viewport=DESKTOP)
        context.set_default_timeout(PATIENCE)
        tab = context.new_page()
        a_new_owner(tab, link, a_file(home))
        tab.emulate_media(color_scheme="dark")
        kept(tab, "page-try-dark")
        tab.click("nav a[href='#adapters']")
        expect(tab.locator("#adapter-list .mark")).to_be_visible()
        tab.set_viewport_size(PHONE)
        kept(tab, "page-phone-dark")
        tab.emulate_media(color_scheme="light")
        tab.click("nav a[href='#leaves']")
        kept(tab, "page-phone")
        context.close()


# Enough users for curves and intervals; a minute or two on a core.
RUN = ["users=24", "development-users=6", "methods=base,shared,sft,positives,c-bpo"]


def reported(home: Path) -> Path:
    """The report of a small simulation, which is run."""
    keys = [word for key in RUN for word in ("-c", key)]
    words = ["simulate", *keys, "--name", "small", "--output-dir", str(home / "runs")]
    command = [sys.executable, "-m", "idiolect.server.cli", *words]
    environment = os.environ | {"IDIOLECT_HOME": str(home)}
    subprocess.run(command, env=environment, check=True)
    return home / "runs" / "small" / "report.html"


def of_a_report(browser: Any, home: Path) -> None:
    """Take the pictures of a report, opened from the disk without a network."""
    address = reported(home).as_uri()
    context = browser.new_context(viewport=DESKTOP, offline=True)
    tab = context.new_page()
    tab.goto(address)
    kept(tab, "report")
    tab.emulate_media(color_scheme="dark")
    tab.evaluate("document.querySelector('#users').scrollIntoView()")
    kept(tab, "report-dark")
    tab.set_viewport_size(PHONE)
    tab.emulate_media(color_scheme="light")
    tab.evaluate("document.querySelector('#methods').scrollIntoView()")
    kept(tab, "report-phone")
    context.close()


def main() -> None:
    """Take all pictures, or those that are named."""
    makers = {"page": of_the_page, "report": of_a_report}
    PICTURES.mkdir(exist_ok=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"]
        )
        expect.set_options(timeout=PATIENCE)
        for name in sys.argv[1:] or makers:
            with tempfile.TemporaryDirectory() as home:
                makers[name](browser, Path(home))
        browser.close()


if __name__ == "__main__":
    main()
