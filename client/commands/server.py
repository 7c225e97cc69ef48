"""The commands around a server: join, answer, leave; what may leave, and what has left."""

import argparse
from dataclasses import asdict
from time import localtime, strftime
from typing import Any

from ...common.config import absolute_backbone
from ...common.errors import required
from ...common.text import printable, tell
from ..node import membership, worker
from ..owner import consent, unlock
from ..owner.vault import Vault
from .answer import Answer, opened, sure

NO_LIMIT = "; 0: no limit"


def join(options: argparse.Namespace) -> Answer:
    """Remember a server; print the line that registers this device there."""
    server = membership.read_invitation(options.invitation)
    with opened(options) as vault:
        membership.join(vault, server)
        line = membership.public_line(vault)
    mark, witness = membership.fingerprint(server), server.witness
    text = (
        f"joined {printable(server.address)}, whose authority is, as `serve` shows it:\n"
        f"  {mark}\n"
    )
    if witness:
        text += f"and which names a witness with the key\n  {witness}\n"
        text += "Send the witness the line below too: see `idiolect node vouched`.\n"
    return Answer(
        {"server": server.address, "key": line, "authority": mark, "witness": witness},
        f"{text}Send its operator this line, for `idiolect-server nodes add`:\n{line}",
        exact=True,
    )


def vouched(vault: Vault, options: argparse.Namespace) -> Answer:
    """Keep the witness's signature of this device's key."""
    membership.keep_voucher(vault, options.voucher)
    return Answer(
        {"vouched": True},
        "the witness vouches for this device: it takes part in masked sums.",
    )


def run_node(options: argparse.Namespace) -> int:
    """Answer the server's messages until SIGTERM or Ctrl-C."""
    key = unlock.unlock(options.vault, options.passphrase_file)
    with Vault.open(options.vault, key) as vault:  # before anything is started
        membership.joined(vault)
    return worker.keep_running(options.vault, key, tell)


def answer(vault: Vault, options: argparse.Namespace) -> Answer:
    """Show or change what may leave the device."""
    name = options.outflow
    if options.answer:
        consent.consent(vault, name, options.answer)
    found = consent.consents(vault)
    if not name:
        lines = [
            f"{one:10}{given:7}{consent.NAMES[one]}" for one, given in found.items()
        ]
        lines.append("`idiolect consent NAME` shows which answers there are.")
        return Answer(found, "\n".join(lines))
    choices = consent.answers_to(name)
    if options.answer:
        return Answer(found, f"{name} is {found[name]} from now on.")
    takes = "".join(f"\n  {one:6} {what}" for one, what in choices.items())
    text = f"{consent.NAMES[name]}\nit takes{takes}"
    return _one(name, found[name], consent.DEFAULTS[name], list(choices), text)


def _one(name: str, value: str, usual: str, takes: Any, text: str) -> Answer:
    """What an outflow or a setting is, and what else it may be."""
    return Answer(
        {"name": name, "value": value, "default": usual, "takes": takes},
        f"{name} is {value} (default: {usual})\n  {text}",
    )


def settings(vault: Vault, options: argparse.Namespace) -> Answer:
    """Show or change what the device uses."""
    name, said = options.name, ""
    if options.value is not None:
        said = _choose(vault, name, options.value)
    found = consent.settings(vault)
    if not name:
        lines = [
            f"{one:14}{value:9} {consent.MEANINGS[one]}"
            + NO_LIMIT * consent.takes(one).endswith(NO_LIMIT)
            for one, value in found.items()
        ]
        lines.append(
            "`idiolect settings NAME` shows a default, and which values it takes."
        )
        return Answer(found, "\n".join(lines))
    consent.check_name(name, consent.SETTINGS, "setting")
    if options.value is not None:
        return Answer(found, f"{name} is {found[name]} from now on.{said}")
    takes = consent.takes(name)
    text = f"{consent.MEANINGS[name]}\nit takes {takes}"
    return _one(name, found[name], consent.SETTINGS[name], takes, text)


def _choose(vault: Vault, name: str, value: str) -> str:
    """Change a setting, if it can be used; returns what else that means."""
    consent.check_setting(name, value)
    said = ""
    if name in ("backbone", "max-length", "dtype", "device"):
        value = absolute_backbone(value) if name == "backbone" else value
        from ..owner import adapters, loading  # loads torch

        loaded = loading.check_loads({**consent.settings(vault), name: value})
        number = adapters.active(vault)
        of = [one.backbone for one in adapters.versions(vault) if one.number == number]
        if of and of[0] != loaded.hash:
            said = f"\nadapter {number}, in use, was trained on other weights: train again "
            said += "by `idiolect personalize`."
    consent.choose(vault, **{name: value})
    return said


def sent(vault: Vault, _options: argparse.Namespace) -> Answer:
    """List the messages that left the device, and what protects each."""
    found = consent.sent(vault)
    listed = [{**asdict(one), "what": consent.word_of(one.kind)} for one in found]
    notes = list(dict.fromkeys(one.why for one in found if one.why))
    row = "{:16}  {:>9}  {:8}  {:22}  {}".format
    text = [row("when", "bytes", "what", "run", "protected by")] if found else []
    for one in found:
        when = strftime("%Y-%m-%d %H:%M", localtime(one.time))
        why = f"none [{notes.index(one.why) + 1}]" if one.why else "none"
        covered = why if one.epsilon is None else f"eps {one.epsilon:g}"
        run = printable(one.run, 60)
        text.append(row(when, one.bytes, consent.word_of(one.kind), run, covered))
    text += [f"[{n}] {printable(why, 200)}" for n, why in enumerate(notes, 1)]
    return Answer(listed, "\n".join(text) or "nothing has left.")


MOST_SHOWN = 40


def directory(vault: Vault, _options: argparse.Namespace) -> Answer:
    """List the members of the last run's masked sums, and what owners compare."""
    seen = membership.members_of(vault)
    if seen is None:
        text = "this device has taken part in no masked sum: it knows no other members."
        return Answer({"members": []}, text)
    listed, read = membership.to_compare(vault, seen)
    found = {"run": seen.name, "since": seen.since, "digits": read, "members": listed}
    when = strftime("%Y-%m-%d %H:%M", localtime(seen.since))
    count = "the first run with masked sums that this device saw"
    if seen.new is not None:
        count = f"{len(seen.new)} of them new since the run before"
    first = sorted(listed, key=lambda one: not (one["own"] or one["new"]))[:MOST_SHOWN]
    lines = [f"run {printable(seen.name, 60)}, {when}: {len(listed)} members, {count}"]
    lines += [_listed(one) for one in first]
    if len(first) < len(listed):
        lines.append(f"  and {len(listed) - len(first)} more, which --json lists")
    lines += ["All members of this run read the same digits:", f"  {read}"]
    return Answer(found, "\n".join(lines), exact=True)


def _listed(one: dict[str, Any]) -> str:
    """A member in a line: the first 20 hex digits of its key's hash."""
    mark = one["fingerprint"][:20]
    parts = " ".join(mark[at : at + 4] for at in range(0, 20, 4))
    said = " this device" * one["own"] + " new" * one["new"]
    return f"  {one['device']:28} {parts}{said}"


def pause(vault: Vault, _options: argparse.Namespace) -> Answer:
    """Answer no server for now."""
    return _set_paused(
        vault, True, "this device answers no server now; `idiolect resume` ends that."
    )


def resume(vault: Vault, _options: argparse.Namespace) -> Answer:
    """Answer the server again."""
    which = "a" if membership.server_of(vault) is None else "its"
    text = f"this device answers {which} server again, by `idiolect node run`."
    return _set_paused(vault, False, text)


def _set_paused(vault: Vault, yes: bool, text: str) -> Answer:
    consent.pause(vault, yes)
    if membership.server_of(vault) is None:
        text += "\nit has joined none: `idiolect node join INVITATION` joins one."
    return Answer({"paused": yes}, text)


def leave(vault: Vault, options: argparse.Namespace) -> Answer:
    """Leave the server, and forget it."""
    server = required(
        membership.server_of(vault),
        "this device has joined no server, so there is none to leave: `idiolect node "
        "join INVITATION` joins one.",
    )
    address = printable(server.address)
    sure(options, f"this device's key for {address} is erased")
    membership.leave(vault)
    return Answer(
        {"left": True},
        f"left {address}. Ask its operator to revoke this device's key as well.",
    )
