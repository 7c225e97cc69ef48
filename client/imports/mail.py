"""Mailboxes in mbox format: what somebody wrote, without what it quotes."""

import mailbox
import re
from collections.abc import Iterator
from email import message_from_binary_file, policy
from email.message import EmailMessage
from email.utils import parseaddr
from functools import partial
from pathlib import Path
from typing import Any

from ...common.errors import explained, refuse_if
from .rows import Bad, Left, Row

_COLUMNS = (("text", "body"), ("prompt", "Subject"), ("date", "Date"))
# What programs put above a mail that they append as a whole.
_APPENDED = re.compile(
    r"-{2,} ?(?:original message|forwarded message|ursprüngliche nachricht|"
    r"message d'origine|mensaje original) ?-{2,}|begin forwarded message:|_{20,}",
    re.I,
)
_RE = re.compile(r"^(?:(?:re|aw|sv|antw|fwd?|wg|tr)(?:\[\d+\])?:\s*)+", re.I)


def read_mbox(path: Path) -> Iterator[Row | Left | Bad]:
    """Everybody's mails in a mailbox: the subject as prompt, the own words as text.

    Raises
    ------
    IdiolectError
        It cannot be read.
    """
    factory: Any = partial(message_from_binary_file, policy=policy.default)
    absent = f"{path} cannot be read, since it does not exist: check the name."
    errors = (OSError, mailbox.Error)
    with explained(f"{path} cannot be read", "check the file", errors):
        refuse_if(not path.exists(), absent)
        box: Any = mailbox.mbox(path, factory, create=False)
        for number, key in enumerate(box.iterkeys(), 1):
            yield _mail(box, key, f"{path.name}, mail {number}")


def _mail(box: Any, key: Any, place: str) -> Row | Left | Bad:
    try:
        mail: EmailMessage = box[key]
        part = mail.get_body(("plain",))
        if part is None:
            return Left("mails without plain text")
        text = own_words(str(part.get_content()))
        who = parseaddr(str(mail["From"] or ""))[1].lower() or "nobody"
        subject = _RE.sub("", str(mail["Subject"] or "").strip())
        date = str(mail["Date"]) if mail["Date"] else None
    except RecursionError:  # thousands of brackets, or of parts within parts
        return Bad(place, "cannot be read (nested too deeply)", "malformed mail")
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        # The standard library's parser fails on some malformed headers like this.
        return Bad(place, f"cannot be read ({error})", "malformed mail")
    if not text:
        return Left("mails that only quote")
    return Row(place, subject, text, None, date, who, _COLUMNS)


def own_words(text: str) -> str:
    """Text of a mail without what it quotes and without its signature.

    Left out are lines that begin with ``>``, the line that announces them (it ends with a
    colon; with the line before, where it was wrapped), everything from the signature's
    ``--`` on, and everything from a line such as ``-----Original Message-----`` on.
    """
    kept: list[str] = []
    quoting = False
    for line in text.replace("\r\n", "\n").split("\n"):
        if line in ("-- ", "--") or _APPENDED.fullmatch(line.strip()):
            break
        if line.startswith(">From "):  # how a mailbox writes "From " at a line's start
            line = line[1:]
        quoted = line.startswith(">")
        if quoted and not quoting:
            _drop_announcement(kept)
        quoting = quoted or (quoting and not line.strip())
        if not quoted:
            kept.append(line)
    return re.sub(r"\n\s*\n\s*\n", "\n\n", "\n".join(kept)).strip()


def _drop_announcement(kept: list[str]) -> None:
    """Remove the last line with words, if it announces a quotation."""
    while kept and not kept[-1].strip():
        kept.pop()
    if not kept or not kept[-1].rstrip().endswith(":"):
        return
    last = kept.pop()
    # "On Tue, 12 Mar 2024 at 10:00, Anna <anna@example.org>" / "wrote:"
    wrapped = len(last.split()) <= 3 or not re.search(r"\d", last)
    if wrapped and kept and re.search(r"\d.*[<@]|\d{1,2}:\d{2}", kept[-1]):
        kept.pop()
