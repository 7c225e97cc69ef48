"""How fast is the vault? Import, list, search and forget many short messages.

    python benchmarks/vault.py [ITEMS]

Prints one line per operation, with the rate, and checks that no message and no name is in
the files in clear. What it prints depends on the disk: every write waits for it.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from idiolect.client.owner import history
from idiolect.client.owner.history import Entry
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.records import Source
from idiolect.client.owner.vault import Vault
from idiolect.common.data.types import Prompt

CANARY = "canary-of-more-than-thirty-two-characters"


def timed(what: str, items: int, work: Callable[[], object]) -> None:
    """Do it once and print how long it took."""
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    print(f"{what:24}{seconds:8.2f} s {items / seconds:12,.0f} items/s")


def main() -> None:
    """Measure the operations an owner waits for."""
    items = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    prompt = Prompt("", f"what about {CANARY}? " + "some words before it " * 5)
    entries = [Entry(prompt, f"answer {i}: {CANARY}") for i in range(items)]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "vault.db"
        key = RandomKey(bytes(32))
        with Vault.create(path, key) as vault:
            half = items // 2
            timed("import", half, lambda: history.add(vault, entries[:half], "one"))
            timed(
                "import the rest",
                half,
                lambda: history.add(vault, entries[half:], "two"),
            )
            timed(
                "import them again", items, lambda: history.add(vault, entries, "one")
            )
            timed("list", items, lambda: history.entries(vault))
            timed("check", items, vault.check)
            timed("open", items, lambda: Vault.open(path, key).close())
            size = sum(file.stat().st_size for file in path.parent.iterdir())
            there = b"".join(file.read_bytes() for file in path.parent.iterdir())
            timed(
                "forget half of them",
                half,
                lambda: vault.forget(Source("import", "one")),
            )
            assert len(list(vault.records(history.KIND))) == items - half
        assert CANARY.encode() not in there
    print(f"{size / items:.0f} bytes on disk per item; nothing is there in clear")


if __name__ == "__main__":
    main()
