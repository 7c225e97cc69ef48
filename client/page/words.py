"""Sentences of the commands in the words of the page: its fields, buttons and parts."""

import re

WHOSE, SKIP = "“Whose texts”", "“leave out what cannot be read”"
DAY, MONTH = "“day first”", "“month first”"
KEEP, NEWEST = "“keep the order of the file”", "“the newest is at the top”"
TERMINAL = "in a terminal"

# What a sentence says to somebody at a terminal -> what it says on the page, in this order.
PHRASES = (
    # fields
    (
        r"say of which task by --task LaMP-4 .*, and whose history by --user ID",
        f"import it by `idiolect import`, {TERMINAL}, with its task and user",
    ),
    (r"leave out --user", f"leave {WHOSE} empty"),
    (r"(?:by|to) --user(?: NAME| ID)?\b", f"under {WHOSE}"),
    (r"--skip-bad-rows\b", SKIP),
    (r"--dates dmy or (?:--dates )?mdy\b", f"{DAY} or {MONTH}"),
    (r"keep the order of the file by --dates ignore\b", f"choose {KEEP}"),
    (
        r"--dates ignore keeps the order of the file",
        f"{KEEP} does without dates",
    ),
    (r"--dates ignore\b", KEEP),
    (r"--newest-first\b", NEWEST),
    (r" \(--most\)", ""),
    (r"by --source NAME\b", "under “Name to find and forget it by”"),
    # buttons and parts
    (r"import more with `idiolect import FILE`", "add more under “Texts”"),
    (r": import more, and train again", ": add more, and train again"),
    (r" by `idiolect personalize`", " under “Train”"),
    (r"`idiolect personalize` trains one", "train one under “Train”"),
    (r"`idiolect use \S+` puts (.+?) into use", r"put \1 into use under “Adapters”"),
    (r"by `idiolect use N`", "under “Adapters”"),
    (
        r"`idiolect reset` goes back to the bare model",
        "go back to the bare model under “Adapters”",
    ),
    (r"see `idiolect history (?:list|sources)`", "see “Texts”"),
    (r"`idiolect leave` first", "leave it first"),
    # what only a terminal has
    (
        r"A smaller --learning-rate changes less",
        f"A smaller rate does: `idiolect personalize --learning-rate RATE` {TERMINAL}",
    ),
    (
        r"(?<!import )(?<![\w`-])(--(?:task|encoding|most|dates)\b(?: cp1252)?)",
        r"`idiolect import \1`",
    ),
    (rf"(`idiolect [^`]+`)(?!,? {TERMINAL})", rf"\1 {TERMINAL}"),
)
_COMPILED = [
    (re.compile(f"(?<![\\w-]){o}" if o[0] == "-" else o), n) for o, n in PHRASES
]


def on_page(sentence: str) -> str:
    """A sentence of a command as the page says it."""
    for old, new in _COMPILED:
        sentence = old.sub(new, sentence)
    return sentence
