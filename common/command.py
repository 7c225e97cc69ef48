"""How commands end: an exit code, one sentence for whatever went wrong, no traceback.

0    success; also a service that was asked to end
1    the new adapter loses and is not used, or the run failed
2    something in the command, a file, a setting or the machine is wrong: put it right
70   a defect of idiolect: where its traceback is, is said
130  interrupted by Ctrl-C
141  whoever read the output has gone, as in `| head`: nothing is said
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import DefectError, IdiolectError
from .files import write_new
from .text import lines, make_encodable, printable, tell, tell_json, tell_sentence

FAILED, WRONG, DEFECT, INTERRUPTED, UNREAD = 1, 2, 70, 130, 141
LONGEST = 4000  # characters of a sentence: it may quote paths

# What the machine refuses, and what to do: none of these is a defect of idiolect.
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise IdiolectError(f"{message.rstrip('.')}: see `{self.prog} --help`.")


def new_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser that refuses a wrong command line by an `IdiolectError`."""
    return _Parser(prog=name, description=description)


def carry_out(
    make: Callable[[], argparse.ArgumentParser],
    arguments: Sequence[str] | None,
    beside: Callable[[argparse.Namespace], Path],
    quote: bool = True,
) -> int:
    """Carry out one command line and return its exit code.

    Parameters
    ----------
    make
        Makes the parser; its commands set ``run``, which returns an exit code.
    arguments
        The command line; None: that of this process.
    beside
        Folder in which the traceback of a defect is written; one that is not there, or
        cannot be written, is replaced by the folder for temporary files.
    quote
        Whether that file may quote what the exceptions said. Not on a device: they can
        quote the owner's text, which is in clear nowhere else.
    """
    make_encodable()
    given = sys.argv[1:] if arguments is None else list(arguments)
    folder: list[Path] = []
    short = False
    if arguments is None:
        guard_process(lambda error: _defect(error, folder, quote))
    try:
        try:
            options = make().parse_args(given)
            with contextlib.suppress(AttributeError):
                folder.append(beside(options))
            return options.run(options)
        except KeyboardInterrupt as error:
            code, text = INTERRUPTED, str(error) or "interrupted: start it again."
        except IdiolectError as error:
            code, text = code_of(error, WRONG), str(error)
            short = _short_of_memory(error)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _unread():
                raise
            code, text = refusal(error) or (DEFECT, _defect(error, folder, quote))
            short = _short_of_memory(error)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
        complain(text, code, "--json" in given)
        if short and arguments is None:
            _end_now(code)
        return code
    except BrokenPipeError:
        return _forget_output()
    except SystemExit as error:  # rich ends a process whose output nobody reads with 1
        if isinstance(error.__context__, BrokenPipeError):
            return _forget_output()
        raise
    except OSError as error:  # the output itself, such as a full disk
        with contextlib.suppress(OSError):
            tell(f"error: the output cannot be written: {error.strerror}.", sys.stderr)
        _forget_output()
        return WRONG


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
    """Text of several lines as one."""
    return printable(" ".join(text.splitlines()), LONGEST)


@contextlib.contextmanager
def on_interrupt(sentence: str) -> Iterator[None]:
    """Let Ctrl-C within end the command with this sentence: what is kept, how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(sentence) from None


# --- what is no sentence yet -----------------------------------------------------------


def refusal(error: Exception) -> tuple[int, str] | None:
    """Code and sentence of what is refused by the machine, not by a defect of idiolect."""
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
        return WRONG, f"{what}{where}: {REFUSED[error.errno]}, and start it again."
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was refused."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)  # torch's, too
        and ("allocate memory" in str(error) or "out of memory" in str(error))
    )


def _short_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that memory was refused."""
    seen: BaseException | None = error
    while seen is not None and not out_of_memory(seen):
        seen = seen.__cause__
    return seen is not None


def _end_now(code: int) -> NoReturn:
    """End this process without the interpreter's tidying up.

    A thread of a library that was refused memory can wait for a lock for ever, and the
    interpreter waits for it at its end. Everything of ours is closed by then.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(code)


def _defect(error: BaseException, folder: Sequence[Path], quote: bool) -> str:
    """Keep a traceback in a private file; return the sentence that says so."""
    place = keep_traceback(error, folder[0] if folder else None, quote)
    return (
        f"idiolect has a defect ({one_line(summary(error))[:300]}): {place}; start the "
        "command again, and if it fails again, report it with that file."
    )


def summary(error: BaseException) -> str:
    """Return an exception as one says it: its kind and its words."""
    return ": ".join(filter(None, (type(error).__name__, str(error))))


def keep_traceback(
    error: BaseException, folder: Path | None = None, quote: bool = True
) -> str:
    """Write a traceback to a file that this account alone can read; say where.

    The same defect has the same file, so that a service that starts again and again does
    not fill the disk.

    Returns
    -------
    str
        "its traceback is in FILE", or why it is not.
    """
    frames = _frames(error)
    text = "".join(traceback.format_exception(error) if quote else frames)
    data = lines(text).encode()
    name = hashlib.sha256("".join(frames).encode(errors="replace")).hexdigest()[:10]
    try:
        if folder is not None and folder.is_dir():
            file = folder.absolute() / f"idiolect-error-{name}.txt"
            with contextlib.suppress(FileExistsError):
                write_new(file, data)
            return f"its traceback is in {file}"
    except OSError:
        pass
    try:
        handle, file = tempfile.mkstemp(".txt", "idiolect-error-")
        with open(handle, "wb") as stream:
            stream.write(data)
    except OSError as refused:
        return f"its traceback could not be written ({refused.strerror})"
    return f"its traceback is in {file}"


def _frames(error: BaseException) -> list[str]:
    """Return where exceptions were raised and of which kind, without their words."""
    found: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        kind = f"{type(seen).__module__}.{type(seen).__qualname__}\n"
        found = [*traceback.format_tb(seen.__traceback__), kind, "\n", *found]
        seen = seen.__cause__ or seen.__context__
    return found


# --- the process -----------------------------------------------------------------------


def guard_process(sentence: Callable[[BaseException], str]) -> None:
    """Let what nobody foresaw in a thread, or at the end, be one sentence as well."""

    def thread(found: threading.ExceptHookArgs) -> None:
        if found.exc_value is not None and found.exc_type is not SystemExit:
            complain(sentence(found.exc_value), DEFECT)

    def ignored(found: Any) -> None:
        if not isinstance(found.exc_value, BrokenPipeError | KeyboardInterrupt | None):
            complain(sentence(found.exc_value), DEFECT)

    def uncaught(_: type, error: BaseException, __: Any) -> None:
        # Ctrl-C a second time, while the first one is dealt with.
        if not isinstance(error, KeyboardInterrupt):
            complain(sentence(error), DEFECT)

    sys.excepthook = uncaught
    threading.excepthook = thread
    sys.unraisablehook = ignored


def _unread() -> bool:
    """Whether who read the output is gone, so that a broken pipe is no defect."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            poll = select.poll()
            poll.register(stream.fileno(), 0)
            if poll.poll(0):
                return True
    return False


def _forget_output() -> int:
    """Give up what is left to be written: the interpreter would complain at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    return UNREAD
