"""How commands end: an exit code, one sentence for each error, no traceback.

0    success; also a service that was asked to end
1    the new adapter is worse and not used, or the run failed
2    something in the command, a file, a setting or the machine is wrong
70   a defect of idiolect; the sentence says where its traceback is
130  interrupted by Ctrl-C
141  the reader of the output is gone, as with `| head`; no message
143  ended by SIGTERM
"""

import argparse
import contextlib
import errno
import hashlib
import os
import select
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .errors import DefectError, IdiolectError
from .files import write_new
from .text import lines, make_encodable, printable, tell, tell_json, tell_sentence

FAILED, WRONG, DEFECT, INTERRUPTED, UNREAD = 1, 2, 70, 130, 141
LONGEST = 4000  # characters of a sentence: it may quote paths

# Errors of the machine, and what to do; none is a defect of idiolect.
REFUSED = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "allow larger files (`ulimit -f`)",
    errno.EACCES: "give this account the right to use it, or name another place",
    errno.EPERM: "give this account the right to use it, or name another place",
    errno.EROFS: "name a place that can be written",
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.ENFILE: "end other programs",
    errno.ENOMEM: "end other programs",
    errno.EAGAIN: "end other programs",
    errno.EIO: "check the disk",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "name a place that no link leads back to",
    errno.ENOTDIR: "name another place",
    errno.EISDIR: "name a file",
    errno.ENOENT: "name one that exists",
}


# Of these, what a machine has run out of, whoever asks for it.
SCARCE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
)
AGAIN = ", and start it again."

Some = TypeVar("Some", bound="Command")


EXAMPLES = "examples:\n"


class _Help(argparse.HelpFormatter):
    """Fills paragraphs to the width, and leaves examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        parts = text.split("\n\n")
        return "\n\n".join(
            part if part.startswith(EXAMPLES) else fill(part, width, indent)
            for part in parts
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise IdiolectError(f"{message.rstrip('.')}: see `{self.prog} --help`.")


def new_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser that refuses a wrong command line by an `IdiolectError`."""
    return _Parser(prog=name, description=description)


Argument = tuple[tuple[str, ...], dict[str, Any]]
"""One argument of a command, as `ArgumentParser.add_argument` takes it."""


def given(*names: str, **how: Any) -> Argument:
    """Return one argument of a command."""
    return names, how


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes
    ----------
    words
        What is typed: its name, or the group that it is in and its name.
    run
        What carries it out; each side says in which form.
    text
        What `--help` says of it.
    arguments
        Its own, in the order of its help.
    more, epilog
        What its own help says after `text`, and at the end.
    examples
        What could be typed after its words; the help ends with them.
    """

    words: str
    run: Any
    text: str
    arguments: tuple[Argument, ...] = ()
    more: str = ""
    epilog: str = ""
    examples: tuple[str, ...] = ()


COMPLETION = Command(
    "completion",
    None,
    "print what lets a shell complete this command",
    (given("shell", choices=("bash", "zsh"), help="for which one"),),
    epilog="Bash reads it from ~/.local/share/bash-completion/completions/COMMAND, zsh "
    "from a file _COMMAND in a folder of $fpath. Print it again after an update.",
    examples=("bash",),
)
"""A command that both sides have; `add_commands` adds it."""


def add_commands(
    parser: argparse.ArgumentParser,
    commands: Sequence[Some],
    groups: Mapping[str, str],
    run: Callable[[Some, argparse.Namespace], int],
    shared: Sequence[Argument] = (),
    *,
    describe: bool = True,
) -> argparse.ArgumentParser:
    """Give a parser its commands, and return it.

    Parameters
    ----------
    commands
        In the order of the help.
    groups
        Name of each group of commands, and what `--help` says of it.
    run
        Carries out a command with its options and returns the exit code.
    shared
        Arguments of every command, before its own.
    describe
        Whether the help of a group repeats its sentence.
    """
    parser.add_argument(
        "--version", action="version", version=f"idiolect {version('idiolect')}"
    )
    top = parser.add_subparsers(required=True, metavar="COMMAND")
    places: dict[str, Any] = {"": top}

    def sentence(text: str) -> str:
        return f"{text[0].upper()}{text[1:]}."  # names in it stay as they are written

    def add(command: Command, act: Callable[..., int], *more: Argument) -> None:
        group, _, name = command.words.rpartition(" ")
        if group not in places:
            text = groups[group]
            about = sentence(text) if describe else None
            part = top.add_parser(group, help=text, description=about)
            places[group] = part.add_subparsers(required=True, metavar="COMMAND")
        one = places[group].add_parser(
            name,
            help=command.text,
            description=sentence(command.text) + command.more,
            epilog=_epilog(parser.prog, command) or None,
            formatter_class=_Help,
        )
        one.set_defaults(run=act)
        for names, how in (*more, *command.arguments):
            one.add_argument(*names, **how)

    for command in commands:
        add(command, partial(run, command), *shared)
    add(COMPLETION, partial(_complete, parser))
    return parser


def _epilog(name: str, command: Command) -> str:
    """What the help of a command ends with."""
    lines = (f"  {name} {command.words} {one}".rstrip() for one in command.examples)
    examples = EXAMPLES + "\n".join(lines) if command.examples else ""
    return "\n\n".join(filter(None, (command.epilog, examples)))


def _complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from .completion import script  # shtab is loaded by nothing else

    tell(script(parser, options.shell))
    return 0


def carry_out(
    make: Callable[[], argparse.ArgumentParser],
    arguments: Sequence[str] | None,
    beside: Callable[[argparse.Namespace], Path],
    quote: bool = True,
) -> int:
    """Run one command line and return its exit code.

    Parameters
    ----------
    make
        Makes the parser; its commands set ``run``, which returns an exit code.
    arguments
        The command line; None: that of this process.
    beside
        Returns the folder for the traceback of a defect; if the folder is not there or
        cannot be written, the folder for temporary files is used.
    quote
        Whether the traceback may have the exceptions' messages. Not on a device: they can
        quote the owner's text, which is nowhere else in clear.
    """
    make_encodable()
    given = sys.argv[1:] if arguments is None else list(arguments)
    folder: list[Path] = []

    def run() -> int:
        options = make().parse_args(given)
        with contextlib.suppress(AttributeError):
            folder.append(beside(options))
        return options.run(options)

    def defect(error: BaseException) -> str:
        return defect_of(error, folder[0] if folder else None, quote)

    if arguments is None:
        guard_process(defect)
    try:
        code, text, at_once = _outcome(run, defect)
        if text:
            complain(text, code, "--json" in given)
        if at_once and arguments is None:
            # Without the interpreter's cleanup: a thread of a library that got no memory
            # can wait for a lock forever. All our own files are closed by now.
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            os._exit(code)
        return code
    except BrokenPipeError:
        return _forget_output()
    except SystemExit as error:  # rich exits with 1 if nobody reads the output
        if isinstance(error.__context__, BrokenPipeError):
            return _forget_output()
        raise
    except OSError as error:  # the output itself, such as a full disk
        with contextlib.suppress(OSError):
            tell(f"error: the output cannot be written: {error.strerror}.", sys.stderr)
        _forget_output()
        return WRONG


def _outcome(
    run: Callable[[], int], defect: Callable[[BaseException], str]
) -> tuple[int, str, bool]:
    """Run a command; return its code, its error, and whether to end at once.

    Where memory was too little, and on Ctrl-C: unloading torch takes seconds.
    """
    try:
        return run(), "", False
    except KeyboardInterrupt as error:
        return INTERRUPTED, str(error) or "interrupted: start it again.", True
    except IdiolectError as error:
        return code_of(error, WRONG), str(error), _short_of_memory(error)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _unread():
            raise
        code, text = refusal(error) or (DEFECT, defect(error))
        return code, text, _short_of_memory(error)
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()


def code_of(error: IdiolectError, otherwise: int) -> int:
    """Return the exit code of an error that has a sentence already."""
    return DEFECT if isinstance(error, DefectError) else otherwise


def complain(text: str, code: int, as_json: bool = False) -> int:
    """Say in one sentence what went wrong, as JSON too where that was asked for."""
    text = one_line(text)
    if as_json:
        tell_json({"error": text})
    tell_sentence(f"error: {text}" if code != INTERRUPTED else text, sys.stderr)
    return code


def one_line(text: str) -> str:
    """Return a text of several lines as one line."""
    return printable(" ".join(text.splitlines()), LONGEST)


@contextlib.contextmanager
def on_interrupt(sentence: str) -> Iterator[None]:
    """Let Ctrl-C within end the command with this sentence: what is kept, how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(sentence) from None


# --- errors without a sentence of their own --------------------------------------------


def refusal(error: Exception) -> tuple[int, str] | None:
    """Return code and sentence of an error of the machine; None if it is a defect."""
    if isinstance(error, EOFError):
        return WRONG, (
            "the input ended before everything was answered: nothing was done, so start "
            "it again."
        )
    if isinstance(error, MemoryError) or "allocate memory" in str(error)[:500]:
        return WRONG, (
            "there is not enough memory: end other programs, or use a smaller backbone "
            "or max-length."
        )
    if isinstance(error, OSError) and error.errno in REFUSED:
        where = f" ({error.filename})" if error.filename else ""
        what = error.strerror or type(error).__name__
        return WRONG, f"{what}{where}: {REFUSED[error.errno]}{AGAIN}"
    return None


def defect_of(
    error: BaseException, folder: Path | None = None, quote: bool = True
) -> str:
    """Return the sentence about a defect, whose traceback is kept (`keep_traceback`)."""
    place = keep_traceback(error, folder, quote)
    return (
        f"idiolect has a defect ({one_line(summary(error))[:300]}): {place}; start "
        "the command again, and if it fails again, report it with that file."
    )


def sentence_of(error: Exception, folder: Path) -> str:
    """Return what an owner is told of an error, outside of a command (`carry_out`)."""
    if isinstance(error, IdiolectError):
        return str(error)
    _, text = refusal(error) or (DEFECT, defect_of(error, folder, quote=False))
    return text


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)  # torch's, too
        and ("allocate memory" in str(error) or "out of memory" in str(error))
    )


def _short_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, is about too little memory."""
    seen: BaseException | None = error
    while seen is not None and not out_of_memory(seen):
        seen = seen.__cause__
    return seen is not None


def summary(error: BaseException) -> str:
    """Return the kind and the message of an exception."""
    return ": ".join(filter(None, (type(error).__name__, str(error))))


def keep_traceback(
    error: BaseException, folder: Path | None = None, quote: bool = True
) -> str:
    """Write a traceback to a private file, and say where it is.

    The same defect has the same file, so a service that starts repeatedly does not fill the
    disk.

    Returns
    -------
    str
        "its traceback is in FILE", or why it is not.
    """
    frames = _frames(error)
    text = "".join(traceback.format_exception(error) if quote else frames)
    data = lines(text).encode()
    name = hashlib.sha256("".join(frames).encode(errors="replace")).hexdigest()[:10]
    with contextlib.suppress(OSError):
        if folder is not None and folder.is_dir():
            file = folder.absolute() / f"idiolect-error-{name}.txt"
            with contextlib.suppress(FileExistsError):
                write_new(file, data)
            return f"its traceback is in {file}"
    try:
        handle, file = tempfile.mkstemp(".txt", "idiolect-error-")
        with open(handle, "wb") as stream:
            stream.write(data)
    except OSError as refused:
        return f"its traceback could not be written ({refused.strerror})"
    return f"its traceback is in {file}"


def _frames(error: BaseException) -> list[str]:
    """Return where exceptions were raised and their kinds, without their messages."""
    found: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        kind = f"{type(seen).__module__}.{type(seen).__qualname__}\n"
        found = [*traceback.format_tb(seen.__traceback__), kind, "\n", *found]
        seen = seen.__cause__ or seen.__context__
    return found


# --- the process -----------------------------------------------------------------------


def guard_process(sentence: Callable[[BaseException], str]) -> None:
    """Report uncaught exceptions of threads, and those at the end, in one sentence too."""

    def report(error: BaseException | None, *silent: type[BaseException]) -> None:
        if error is not None and not isinstance(error, silent):
            complain(sentence(error), DEFECT)

    # Ctrl-C: a second one while the first is handled.
    sys.excepthook = lambda _kind, error, _trace: report(error, KeyboardInterrupt)
    threading.excepthook = lambda found: report(found.exc_value, SystemExit)
    sys.unraisablehook = lambda found: report(
        found.exc_value, BrokenPipeError, KeyboardInterrupt
    )


def _unread() -> bool:
    """Whether the reader of the output is gone: then a broken pipe is not a defect."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            poll = select.poll()
            poll.register(stream.fileno(), 0)
            if poll.poll(0):
                return True
    return False


def _forget_output() -> int:
    """Discard unwritten output, about which the interpreter would complain at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    return UNREAD
