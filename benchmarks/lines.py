"""Count the logical lines of the production code, without comments and docstrings.

    python benchmarks/lines.py [FOLDER]

A logical line is what Python reads as one: a statement over five lines counts once.
"""

import ast
import sys
import tokenize
from collections import Counter
from pathlib import Path

SIDES = ("client", "common", "idiolect", "server")


def docstrings(text: str) -> set[int]:
    """First lines of the docstrings of a module."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(first.lineno)
    return found


def logical_lines(path: Path) -> int:
    """Count the logical lines of one module."""
    text, count, start = path.read_text(), 0, 0
    skipped = docstrings(text)
    for token in tokenize.generate_tokens(iter(text.splitlines(True)).__next__):
        if token.type == tokenize.NEWLINE:
            count += start not in skipped
            start = 0
        elif not start and token.type not in (
            *(tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT),
        ):
            start = token.start[0]
    return count


def main() -> None:
    """Print one line per room, and the sum."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    rooms: Counter[str] = Counter()
    for side in SIDES:
        for path in (root / side).rglob("*.py"):
            parts = path.relative_to(root).parts
            if not any(
                (root / Path(*parts[:n])).is_symlink() for n in range(len(parts))
            ):
                rooms["/".join(parts[: min(2, len(parts) - 1)])] += logical_lines(path)
    for room, count in sorted(rooms.items()):
        print(f"{room:24}{count:7,}")
    print(f"{'together':24}{rooms.total():7,}")


if __name__ == "__main__":
    main()
