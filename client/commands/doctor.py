"""`idiolect doctor`: what a device needs, looked at one by one."""

import argparse
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial

from cryptography.x509 import load_pem_x509_certificate

from ...common import doctor
from ...common.command import FAILED
from ...common.doctor import MB, Finding, attempt
from ...common.errors import IdiolectError
from ...common.process import free_mb
from ...common.text import printable
from ..node import membership
from ..owner import consent
from ..owner.vault import Vault
from .answer import Answer, opened

ROOM = 200 * MB  # for what an adapter and a converted file's head take
# MB of a node that trains, beside its model: benchmarks/day_two.py measures one.
BARE = 500.0


def examine(options: argparse.Namespace) -> Answer:
    """Look at all, and say what was found."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # it fetches nothing
    found = [attempt("versions", doctor.packages)]
    try:
        with opened(options) as vault:
            found += of_vault(vault)
    except IdiolectError as error:
        found.append(Finding("vault", False, str(error)))
    body, lines, well = doctor.report(found)
    return Answer(body, "\n".join(lines), 0 if well else FAILED)


def of_vault(vault: Vault) -> Iterator[Finding]:
    """Yield what each check of an open vault finds."""
    chosen = consent.settings(vault)
    yield Finding("vault", True, f"{vault.path} opens.")
    yield attempt("disk", partial(disk, vault))
    yield attempt("model", partial(model, vault, chosen))
    yield attempt("memory", partial(memory, chosen))
    server = membership.server_of(vault)
    if server is None:
        yield Finding("server", True, "this device has joined none.")
        return
    authority = load_pem_x509_certificate(server.certificate.encode())
    what = f"the authority of {printable(server.address)}"
    yield _valid(what, authority.not_valid_before_utc, authority.not_valid_after_utc)
    try:
        yield from of_server(vault, server)
    except IdiolectError as error:
        yield Finding("server", False, str(error))


def of_server(vault: Vault, server: membership.Server) -> Iterator[Finding]:
    """Yield what asking the joined server finds.

    Raises
    ------
    IdiolectError
        It cannot be reached, or does not let this device in.
    """
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    from ..node.probe import probe

    seen, where = probe(server, membership.node_key(vault)), printable(server.address)
    own = doctor.installed("idiolect")
    said = "lets this device in" if seen.version else "can be reached"
    yield Finding("server", True, f"{where} {said}.")
    yield doctor.clock(seen.ahead, SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE)
    yield _valid(f"the certificate of {where}", seen.begin, seen.end)
    if not seen.version:
        return
    if seen.version != own:
        text = (
            f"the server runs idiolect {seen.version}, this device {own}: install the "
        )
        yield Finding("versions", False, f"{text}same version on both.")
    else:
        yield Finding("versions", True, f"the server runs idiolect {own}, too.")


def _valid(what: str, begin: datetime, end: datetime) -> Finding:
    renew = "tell its operator (`idiolect-server keys renew`)"
    return doctor.validity(what, begin, end, datetime.now(UTC), renew)


def disk(vault: Vault) -> Finding:
    """Whether the vault can be copied once, as erasing does, and can grow."""
    free = shutil.disk_usage(vault.path.parent).free
    return doctor.disk(free, ROOM + vault.path.stat().st_size, vault.path.parent)


def model(vault: Vault, chosen: Mapping[str, str]) -> Finding:
    """Whether the backbone is here and whole, and the one of the adapter in use."""
    from ...common.engine.model_folder import check_folder, identity, locate, unlike
    from ..owner import adapters

    name = chosen["backbone"]
    folder = locate(name)
    check_folder(name, folder)
    own, number = identity(folder), adapters.active(vault)
    used = [one for one in adapters.versions(vault) if one.number == number]
    said = f"{printable(name, 200)} is whole, {own.partition(' ')[0]}"[:160]
    if used and (odd := unlike(used[0].backbone, own)):
        text = f"{said}, but adapter {number} was trained on other {', '.join(odd)}: "
        text += "`idiolect personalize` trains again, `idiolect use` takes another."
        return Finding("model", False, text)
    return Finding("model", True, f"{said}.")


def memory(chosen: Mapping[str, str]) -> Finding:
    """Whether the backbone fits into the memory: as it was measured here, or its files."""
    from ..owner.models import models

    name, allowed = chosen["backbone"], int(chosen["memory-mb"])
    known = [one for one in models() if one.name == name]
    needed, what = BARE, f"{printable(name, 200)} with idiolect"
    if known and known[0].tried:
        needed, what = float(known[0].tried["peak_mb"]), f"{what}, as measured here,"
    elif known:
        needed += known[0].megabytes
    return doctor.memory(needed, free_mb(), allowed, what)
