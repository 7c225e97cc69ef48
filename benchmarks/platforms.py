"""For which platforms every dependency has a wheel; writes docs/platforms.md.

    python benchmarks/platforms.py

Asks the package index of this environment, with the versions of constraints.txt, and
downloads nothing but the index's pages. A package without a wheel has to be compiled there,
or cannot be had.
"""

import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "platforms.md"
PYTHONS = ("3.11", "3.13")
PARTS = {"device and library": (), "server and simulation": ("server", "simulation")}
# Wheels of a platform are tagged with the oldest system that they run on.
GLIBC = (5, 12, 17, 24, 26, 27, 28, 31, 34, 35)
OLD = ("manylinux1", "manylinux2010", "manylinux2014", "linux")
PLATFORMS = {
    "Linux, x86-64": [
        *(f"manylinux_2_{n}_x86_64" for n in GLIBC),
        *(f"{name}_x86_64" for name in OLD),
    ],
    "Linux, aarch64 (Raspberry Pi, Jetson, Graviton)": [
        *(f"manylinux_2_{n}_aarch64" for n in GLIBC),
        *(f"{name}_aarch64" for name in OLD),
    ],
    "macOS 14, Apple silicon": [
        f"macosx_{n}_0_{kind}"
        for n in range(11, 15)
        for kind in ("arm64", "universal2")
    ],
    "macOS 14, Intel": [
        *(f"macosx_10_{n}_{k}" for n in range(9, 17) for k in ("x86_64", "universal2")),
        *(f"macosx_{n}_0_{k}" for n in range(11, 15) for k in ("x86_64", "universal2")),
    ],
}
# By hand: what a person did, which no command can find out.
RUN = {
    "Linux x86-64, CPU, Python 3.11": "everything: tests, simulations, studies, "
    "deployments, benchmarks",
    "Linux x86-64, one NVIDIA GPU": "`tests/common/engine/test_gpu.py` and the benchmarks, "
    "with an earlier engine (version 0.1); not since",
    "Linux aarch64, macOS, other Pythons": "nothing: the tables above are all we know",
    "Jetson": "nothing. The wheel of torch above computes on its CPU. One for its GPU "
    "comes from NVIDIA, and JetPack 6 has Python 3.10, while idiolect needs 3.11",
    "Windows": "not supported: files are locked, and work is limited, by Unix calls. WSL "
    "is Linux",
}
TEXT = """# Platforms

Written by `python benchmarks/platforms.py`; don't edit. A cell says whether all
dependencies, in the versions of `constraints.txt`, have a wheel for the platform, or how
many have one and which have none. idiolect itself is pure Python.

{tables}

## What was run

| platform | what was run |
| --- | --- |
{rows}
"""


def needed(extras: tuple[str, ...]) -> list[str]:
    """Names of all packages that idiolect with these extras installs."""
    # A package may be asked for again, with extras.
    found = set[tuple[str, frozenset[str]]]()
    todo = [("idiolect", frozenset(extras))]
    while todo:
        name, asked = todo.pop()
        for text in importlib.metadata.requires(name) or ():
            one = Requirement(text)
            wanted = [{"extra": extra} for extra in ("", *asked)]
            if one.marker and not any(map(one.marker.evaluate, wanted)):
                continue
            wants = canonicalize_name(one.name), frozenset(one.extras)
            if wants not in found:
                found.add(wants)
                todo.append(wants)
    return sorted({package for package, _ in found} - {"idiolect"})


def pins() -> dict[str, str]:
    """Package -> requirement, from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    entries = [line.strip() for line in lines if "==" in line.split("#")[0]]
    return {canonicalize_name(Requirement(line).name): line for line in entries}


def without_wheel(packages: list[str], tags: list[str], python: str) -> list[str]:
    """The packages that have no wheel for a platform; asks again without each."""
    missing: list[str] = []
    left = list(packages)
    while left:
        with tempfile.TemporaryDirectory() as target:
            words = ["--dry-run", "--no-deps", "--only-binary", ":all:", "-q"]
            words += ["--python-version", python, "--target", target]
            for tag in tags:
                words += ["--platform", tag]
            known = pins()
            asked = [known.get(name, name) for name in left]
            done = subprocess.run(
                [sys.executable, "-m", "pip", "install", *words, *asked],
                capture_output=True,
                text=True,
                check=False,
            )
        if not done.returncode:
            break
        name = refused(done.stderr)
        missing.append(name)
        left.remove(name)
    return missing


def refused(said: str) -> str:
    """The package that pip could not find, from its errors.

    Where other files of that version are known it says "Cannot install torch==2.13.0".
    """
    for line in said.splitlines():
        for words in ("No matching distribution found for ", "ERROR: Cannot install "):
            if words in line:
                text = line.split(words)[1].split()[0]
                return canonicalize_name(Requirement(text).name)
    sys.exit(said)


def main() -> None:
    """Ask for every platform, and write the page."""
    parts = {part: needed(extras) for part, extras in PARTS.items()}
    everything = sorted(set().union(*parts.values()))
    missing = {}
    for platform, tags in PLATFORMS.items():
        for python in PYTHONS:
            found = without_wheel(everything, tags, python)
            print(f"{platform}, {python}: {', '.join(found) or 'all'}", flush=True)
            missing[platform, python] = set(found)
    tables: list[str] = []
    for part, packages in parts.items():
        tables += ["", f"## {part.capitalize()}: {len(packages)} packages", ""]
        tables += [f"| platform | {' | '.join(f'Python {p}' for p in PYTHONS)} |"]
        tables += ["| --- |" + " --- |" * len(PYTHONS)]
        for platform in PLATFORMS:
            cells = [said(packages, missing[platform, python]) for python in PYTHONS]
            tables.append(f"| {platform} | {' | '.join(cells)} |")
    PAGE.write_text(TEXT.format(tables="\n".join(tables).strip(), rows=table(RUN)))


def said(packages: list[str], missing: set[str]) -> str:
    """One cell: how many packages have a wheel, and which have none."""
    lacking = [name for name in packages if name in missing]
    if not lacking:
        return "all"
    return f"{len(packages) - len(lacking)}; not {', '.join(lacking)}"


def table(rows: dict[str, str]) -> str:
    """Rows of a table of two columns."""
    return "\n".join(f"| {name} | {text} |" for name, text in rows.items())


if __name__ == "__main__":
    main()
