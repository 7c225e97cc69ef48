"""`idiolect-server doctor`: what a server needs, looked at one by one."""

import shutil
import stat
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from ...common import doctor
from ...common.doctor import Finding, attempt
from ...common.engine.model_folder import check_folder, locate, weights_hash
from ...common.process import free_mb
from ..run import results
from . import keys, monitor
from .metrics import Watched
from .places import DATABASE
from .proxy import bound
from .serve import serving

# What a server takes beside its database and its runs: logs, and a copy of the database
# while it is made smaller.
ROOM = 1 << 30
# MB of the three processes and one ServerApp with the built-in backbone, which
# benchmarks/day_two.py measures; a server never loads a backbone.
MEMORY = 1500.0


def examine(folder: Path, backbone: str = "") -> list[Finding]:
    """Return what each check finds.

    Parameters
    ----------
    folder
        Of the server.
    backbone
        Of the runs to come; empty: none is looked at.
    """
    looks = {
        "versions": partial(doctor.packages, "server"),
        "memory": partial(doctor.memory, MEMORY, free_mb(), 0, "a server with one run"),
        "keys": partial(private_files, folder),
    }
    if (folder / keys.PAIR).exists():
        looks |= {
            "certificate": partial(certificate, folder),
            "port": partial(port, folder),
            "disk": partial(disk, folder),
        }
    if backbone:
        looks["model"] = partial(model, backbone)
    return [attempt(name, look) for name, look in looks.items()]


def certificate(folder: Path) -> Finding:
    """Whether key and certificate match, are valid now, and have the invitation's name."""
    keys.certificate_end(folder)
    reached, _ = keys.invited_to(folder)
    own = x509.load_pem_x509_certificate((folder / keys.PAIR).read_bytes())
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    renew = "`idiolect-server keys renew`, then start `serve` again"
    try:
        own.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        text = f"it is not signed by the authority that devices trust: {renew}."
        return Finding("certificate", False, text)
    names = keys.names_in(own)
    if reached not in names:
        return Finding(
            "certificate",
            False,
            f"devices connect to {reached}, and it has only {', '.join(names)}: "
            f"`idiolect-server keys renew {reached}`, then start `serve` again.",
        )
    anew = "make keys in another folder and give every device the new invitation"
    found = [
        _valid("the authority", authority, anew),
        _valid(f"the certificate of {reached}", own, renew),
    ]
    return next((one for one in found if not one.ok), found[-1])


def _valid(what: str, one: x509.Certificate, renew: str) -> Finding:
    begin, end = one.not_valid_before_utc, one.not_valid_after_utc
    return doctor.validity(what, begin, end, keys.now(), renew)


def private_files(folder: Path) -> Finding:
    """Whether all are there, and nobody else can read the secrets."""
    keys.check_there(folder)
    secrets = ("ca.key", keys.PAIR, "signing.key", "flower/token")
    there = [folder / name for name in secrets if (folder / name).exists()]
    open_ones = [f for f in (folder, *there) if stat.S_IMODE(f.stat().st_mode) & 0o077]
    if open_ones:
        names = ", ".join(map(str, open_ones))
        text = f"other accounts can read {names}: `chmod -R go= {folder}`."
        return Finding("keys", False, text)
    return Finding("keys", True, f"only this account can read {folder}.")


def port(folder: Path) -> Finding:
    """Whether devices can connect, or, while nothing is served, whether they could."""
    _, number = keys.invited_to(folder)
    now = serving(folder)
    if now is not None and results.is_locked(folder):
        host, number = now.host or "0.0.0.0", now.proxy or number
        server = Watched(folder, host, number, now.port, now.mark)
        wrong = [text for text in monitor.problems(server).values() if text]
        text = wrong[0] if wrong else f"a server is up, and answers at port {number}"
        return Finding("port", not wrong, f"{text}.")
    try:
        bound("0.0.0.0", number).close()
    except OSError as error:
        text = (
            f"port {number} cannot be had ({error.strerror}): end what listens there."
        )
        return Finding("port", False, text)
    text = f"nothing is served now; port {number} is free."
    return Finding("port", True, text)


def disk(folder: Path) -> Finding:
    """Whether the disk has room for a second copy of the database, and for logs."""
    base = folder / DATABASE
    size = base.stat().st_size if base.exists() else 0
    free = shutil.disk_usage(folder).free
    return doctor.disk(free, ROOM + size, folder.absolute())


def model(name: str) -> Finding:
    """Whether a run's backbone is here and whole; the server compares its hash only."""
    folder = locate(name)
    check_folder(name, folder)
    return Finding(
        "model", True, f"{name} is whole, weights {weights_hash(folder)[:16]}."
    )
