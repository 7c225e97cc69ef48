"""Put the output of a run into the README: ``python benchmarks/readme.py [RUN]``.

Replaces what stands between the two markers by what ``idiolect-server show RUN`` prints
(default: latest), so that no number in the README is written by hand.
"""

import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- output of make lamp -->\n", "<!-- end of output -->\n"


def main(run: str) -> None:
    """Rewrite the block between the markers."""
    command = [str(Path(sys.executable).parent / "idiolect-server"), "show", run]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    home = str(Path.home())
    lines = [line.rstrip().replace(home, "~") for line in shown.strip().splitlines()]
    head, rest = README.read_text().split(START)
    _, tail = rest.split(END)
    block = "```text\n" + "\n".join(lines) + "\n```\n"
    README.write_text(head + START + block + END + tail)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "latest")
