"""One enrolled device against everybody else, in every way we know; write what it did.

    python benchmarks/malicious.py [--findings docs/malicious] [--only slow,huge]

One server and three devices on this machine (`fleet.py`), of which one is hostile: it has
a registered key and speaks Flower's protocol, but answers by one of `MODES`. Each trial is
a run that can do without one device. What is written: whether the run of the honest ones
completed and how much later, what memory and disk the server needed, and whether anything
that a terminal obeys got into the operator's output. Trials that are done are kept in a
file; the same command does what is missing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fleet import Fleet, write_part
from flwr.app import Array, ConfigRecord, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
)

DEVICES, DEADLINE = 3, 60
HOSTILE = f"device{DEVICES - 1}"
HUGE = 480_000_000  # bytes
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31m all is well \x9b1m \u202e"
SETTINGS = (
    *("adapt.rounds=2", "personalise.epochs=1", "evaluate.generate=false"),
    *("quorum=0.6", f"deadline={DEADLINE}"),
)
HEADING = "One malicious device"


@dataclass
class Line:
    """A hostile device's connection.

    Attributes
    ----------
    announce
        (message, tree) -> the objects that the server wants, and the upload's session.
    push
        (session, id, content): upload one object.
    wait
        Seconds between two objects of a slow upload.
    earlier
        What this device was asked and would have answered honestly, in order.
    """

    announce: Callable[[Message, ObjectTree], tuple[set[str], str]]
    push: Callable[[str, str, bytes], None]
    wait: float = 5.0
    earlier: list[tuple[Message, RecordDict]] = field(default_factory=list)

    def send(
        self, reply: Message, tree: ObjectTree, objects: Mapping[str, bytes]
    ) -> None:
        """Announce a reply and upload all of it."""
        wanted, session = self.announce(_head(reply, tree.object_id), tree)
        for name in objects:
            if name in wanted:
                self.push(session, name, objects[name])


def _head(reply: Message, name: str) -> Message:
    """What is announced of a message: all but its content, under a name."""
    head = remove_content_from_message(reply)
    head.metadata.__dict__["_message_id"] = name
    return head


def objects_of(reply: Message) -> dict[str, bytes]:
    """The objects of a message, by id; children before their parents."""
    return {name: one.deflate() for name, one in get_all_nested_objects(reply).items()}


def forged(reply: Message, old: str, bad: bytes) -> tuple[ObjectTree, dict[str, bytes]]:
    """Put another object in the place of one, and parents that name it by its true hash.

    Returns
    -------
    tuple
        The tree, without what is named in it and not there, and the objects.
    """
    renamed = {old: get_object_id(bad)}
    objects = {renamed[old]: bad}
    top = ""
    for name, body in objects_of(reply).items():
        if name != old:
            for before, after in renamed.items():
                body = body.replace(before.encode(), after.encode())
            renamed[name] = get_object_id(body)
            objects[renamed[name]] = body
        top = renamed[name]

    def tree(name: str) -> ObjectTree:
        below = objects[name][: objects[name].index(b"\0")].decode().split(" ")[1]
        children = [tree(child) for child in below.split(",") if child in objects]
        return ObjectTree(object_id=name, children=children)

    return tree(top), objects


# --- what a hostile device does ----------------------------------------------------------


def honest(line: Line, task: Message, record: RecordDict) -> None:
    """Answer as every device does."""
    reply = Message(record, reply_to=task)
    line.send(reply, get_object_tree(reply), objects_of(reply))


def rubbish(line: Line, task: Message, record: RecordDict) -> None:
    """A body that is no protobuf."""
    reply = Message(record, reply_to=task)
    (config,) = (
        name
        for name, one in get_all_nested_objects(reply).items()
        if isinstance(one, ConfigRecord)
    )
    line.send(reply, *forged(reply, config, b"ConfigRecord  9\0" + b"\xff" * 9))


def silent(line: Line, task: Message, record: RecordDict) -> None:
    """Announce an answer, and upload nothing."""
    reply = Message(record, reply_to=task)
    tree = get_object_tree(reply)
    line.announce(_head(reply, tree.object_id), tree)


def slow(line: Line, task: Message, record: RecordDict) -> None:
    """Upload the answer object by object, and never the last of them."""
    reply = Message(record, reply_to=task)
    tree, objects = get_object_tree(reply), objects_of(reply)
    wanted, session = line.announce(_head(reply, tree.object_id), tree)
    for name in [name for name in objects if name in wanted][:-1]:
        line.push(session, name, objects[name])
        time.sleep(line.wait)


def huge(
    line: Line, task: Message, _record: RecordDict, size: int = HUGE
) -> None:  # in pieces, so that the attacker needs no such memory itself
    """An answer of 480 MB."""
    piece = 5_000_000
    seeds = {get_object_id(_piece(seed, piece)): seed for seed in range(size // piece)}
    text = json.dumps(
        {
            "dtype": "uint8",
            "shape": [piece * len(seeds)],
            "stype": "numpy.ndarray",
            "arraychunk_ids": list(range(len(seeds))),
        }
    ).encode()
    array = f"Array {','.join(seeds)} {len(text)}".encode() + b"\0" + text
    small = Message(RecordDict({"arrays": _one_array()}), reply_to=task)
    (old,) = (n for n, o in get_all_nested_objects(small).items() if type(o) is Array)
    tree, objects = forged(small, old, array)
    leaf = tree
    while leaf.object_id != get_object_id(array):
        leaf = leaf.children[0]
    leaf.children.extend(ObjectTree(object_id=name) for name in seeds)
    wanted, session = line.announce(_head(small, tree.object_id), tree)
    for name in (*reversed(objects), *seeds):
        if name in wanted:
            body = objects.get(name) or _piece(seeds[name], piece)
            line.push(session, name, body)


def _piece(seed: int, size: int) -> bytes:
    body = np.random.default_rng(seed).bytes(size)
    return f"ArrayChunk  {size}".encode() + b"\0" + body


def _one_array() -> Any:
    from flwr.app import ArrayRecord

    return ArrayRecord({"rows": Array(np.zeros(1, np.uint8))})


def escapes(line: Line, task: Message, record: RecordDict) -> None:
    """What terminals obey, in Flower's error and in a sentence of ours, in turn."""
    reply = Message(Error(0, ESCAPES), reply_to=task)
    if len(line.earlier) % 2 == 0:
        head = dict(record.config_records["message"])
        body = json.loads(str(head["body"]))
        kept = {name: body[name] for name in ("run", "step") if name in body}
        head |= {"kind": "Failure", "body": json.dumps({**kept, "sentence": ESCAPES})}
        reply = Message(RecordDict({"message": ConfigRecord(head)}), reply_to=task)
    line.send(reply, get_object_tree(reply), objects_of(reply))


def greeting(line: Line, task: Message, record: RecordDict) -> None:
    """What terminals obey, in the version and the names of a greeting."""
    head = dict(record.config_records["message"])
    body = json.loads(str(head["body"]))
    body |= {"package": ESCAPES, "process": ESCAPES}
    body |= {"users": [ESCAPES], "errors": {ESCAPES: ESCAPES}, "nodes": 10**7}
    head["body"] = json.dumps(body)
    changed = {**record, "message": ConfigRecord(head)}
    honest(line, task, RecordDict(changed))


def wrong_source(line: Line, task: Message, record: RecordDict) -> None:
    """An answer in the name of another device."""
    reply = Message(record, reply_to=task)
    reply.metadata.__dict__["_src_node_id"] = task.metadata.dst_node_id ^ 1
    line.send(reply, get_object_tree(reply), objects_of(reply))


def duplicates(line: Line, task: Message, record: RecordDict) -> None:
    """The answer twice, and once more to what was asked before."""
    for to in (task, task, *(old for old, _ in line.earlier[-2:-1])):
        reply = Message(record, reply_to=to)
        with suppress(Exception):  # some are refused, and then it goes on
            line.send(reply, get_object_tree(reply), objects_of(reply))


def old_round(line: Line, task: Message, record: RecordDict) -> None:
    """What it answered in the step before, of the same kind if there was one."""
    kind = task.metadata.message_type
    before = [old for to, old in line.earlier[:-1] if to.metadata.message_type == kind]
    honest(line, task, [record, line.earlier[-2][1], *before][-1])


MODES: dict[str, Callable[[Line, Message, RecordDict], None]] = {
    "rubbish": rubbish,
    "silent": silent,
    "huge": huge,
    "slow": slow,
    "escapes": escapes,
    "greeting": greeting,
    "wrong-source": wrong_source,
    "duplicates": duplicates,
    "old-round": old_round,
}
# These attack with the greeting; the others are let into the run first.
AT_ONCE = ("huge", "greeting")


def answer(mode: str, line: Line, task: Message, record: RecordDict) -> None:
    """Answer a task by a mode, given what an honest device would say."""
    line.earlier.append((task, record))
    greeted = task.metadata.message_type == "query.hello"
    (honest if greeted and mode not in AT_ONCE else MODES.get(mode, honest))(
        line, task, record
    )


# --- the process of a hostile device -----------------------------------------------------


def be(mode: str, vault_file: Path) -> None:
    """Connect with a vault's key, and answer by a mode until the process is ended."""
    from flwr.supercore.inflatable.inflatable_utils import (
        pull_and_inflate_object_from_tree,
    )
    from flwr.supernode.fleet_http_connection import http_request_response

    from idiolect.client.node.device import Device
    from idiolect.client.node.membership import joined, node_key
    from idiolect.client.owner.keys import Passphrase
    from idiolect.client.owner.vault import Vault

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Flower's client ends itself by it
    words = Path(os.environ["IDIOLECT_PASSPHRASE_FILE"]).read_text().strip()
    with Vault.open(vault_file, Passphrase(words)) as vault:
        server, key = joined(vault), node_key(vault)
        with http_request_response(
            server.address,
            insecure=False,
            root_certificates=server.certificate.encode(),
            authentication_keys=(key, key.public_key()),
            max_retries=2,
            max_wait_time=10,
        ) as (node, receive, send, _run, _bundle, pull, push, confirm):
            device, earlier = Device(vault, node), []
            while True:
                try:
                    if (found := receive()) is None:
                        time.sleep(1)
                        continue
                    head, tree = found
                    run = head.metadata.run_id
                    task = pull_and_inflate_object_from_tree(
                        tree,
                        lambda name, run=run: pull(run, name),
                        lambda name, run=run: confirm(run, name),
                        return_type=Message,
                    )
                    task.metadata.__dict__["_message_id"] = tree.object_id
                    line = Line(
                        lambda message, tree: send(message, tree, 0.0),
                        lambda session, name, body, run=run: push(
                            run, session, name, body
                        ),
                        earlier=earlier,
                    )
                    answer(mode, line, task, device.answer(task))
                except Exception as error:  # refused: that was the point
                    print(f"{mode}: {type(error).__name__}: {error}", flush=True)
                    time.sleep(1)


# --- what became of the others -----------------------------------------------------------


class Watch(threading.Thread):
    """Notes the largest memory of the server's processes while a run lasts."""

    VICTIMS = {  # noqa: RUF012
        "ServerApp": "flwr-serverapp",
        "SuperLink": "flower-superlink",
        "proxy": "idiolect.server.deploy.proxy",
    }

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(daemon=True)
        self.fleet, self.peaks, self.ended = fleet, {}, threading.Event()

    def run(self) -> None:
        """Look every second."""
        while not self.ended.wait(1):
            for name, words in self.VICTIMS.items():
                for pid in self.fleet.alive(words, "server"):
                    with suppress(OSError, ValueError):
                        text = Path(f"/proc/{pid}/status").read_text()
                        peak = int(text.split("VmHWM:")[1].split()[0]) / 1024
                        self.peaks[name] = max(peak, self.peaks.get(name, 0.0))


def database_mb(fleet: Fleet) -> float:
    """Size of the SuperLink's database on disk."""
    folder = fleet.folder / "server" / "server" / "flower"
    return sum(file.stat().st_size for file in folder.glob("state.db*")) / 1e6


def unclean(texts: list[str]) -> list[str]:
    """Characters that a terminal or a reader may obey, but for ends of lines."""
    found = {c for text in texts for c in text if not c.isprintable()} - {"\n", "\t"}
    return sorted(repr(c) for c in found)


def strings(value: Any) -> list[str]:
    """Every text in a JSON value."""
    if isinstance(value, dict):
        return [text for pair in value.items() for one in pair for text in strings(one)]
    if isinstance(value, list):
        return [text for one in value for text in strings(one)]
    return [value] if isinstance(value, str) else []


def trial(fleet: Fleet, mode: str) -> dict[str, Any]:
    """One run beside a device of a mode."""
    _become(fleet, mode)
    fleet.wait_for_devices()
    name, before, watch = f"with-{mode}", database_mb(fleet), Watch(fleet)
    watch.start()
    began = time.monotonic()
    run = fleet.run(*SETTINGS, f"run.name={name}")
    said, _ = run.communicate()
    seconds = time.monotonic() - began
    watch.ended.set()
    watch.join()
    folder = fleet.folder / "server" / "runs" / name
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    journal = [json.loads(line) for line in lines]
    results = folder / "results.json"
    failed = (
        json.loads(results.read_text())["run"]["failed"] if results.exists() else {}
    )
    return {
        "mode": mode,
        "completed": run.returncode == 0,
        "seconds": seconds,
        "failed": sorted(failed.values()),
        "peak_mb": watch.peaks,
        "database_mb": [before, database_mb(fleet)],
        "unclean": unclean([said, *strings(journal), *strings(failed)]),
        "said": "" if run.returncode == 0 else said[-500:],
    }


def _become(fleet: Fleet, mode: str) -> None:
    """End the hostile device's process, and start it again in another mode."""
    before = fleet.processes.pop(HOSTILE)
    before.terminate()
    before.wait(30)
    vault = fleet.folder / HOSTILE / "device" / "vault.db"
    with (fleet.folder / f"{HOSTILE}.log").open("ab") as log:
        fleet.processes[HOSTILE] = subprocess.Popen(
            [sys.executable, __file__, "--be", mode, "--vault", str(vault)],
            env=fleet.environment(HOSTILE) | {"FLWR_TELEMETRY_ENABLED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


HEAD = """
Written by `python benchmarks/malicious.py --findings docs/malicious`: runs with
`deadline={deadline}` and `quorum=0.6` on {devices} devices over TLS, all on one
machine. One device is enrolled and hostile. An undisturbed run took {usual:.0f} s.

*Later* is relative to that. *Blamed* is what the run says about the hostile device.
*Memory* is the peak of the server's three processes together. *Database* is the growth of
the SuperLink's database. *Clean*: the operator's output and the journal have no control
characters.

| mode | what it does | completed | later, s | blamed | memory, MB | database, MB | clean |
|---|---|---|---|---|---|---|---|
"""


def section(done: list[dict[str, Any]]) -> str:
    """The table."""
    (usual,) = (one["seconds"] for one in done if one["mode"] == "honest")
    text = HEAD.format(deadline=DEADLINE, devices=DEVICES, usual=usual)
    for one in done:
        what = (MODES.get(one["mode"], honest).__doc__ or "").rstrip(".")
        blamed = "; ".join(dict.fromkeys(one["failed"])) or "nobody"
        before, after = one["database_mb"]
        text += (
            f"| {one['mode']} | {what} | {'yes' if one['completed'] else 'NO'} | "
            f"{one['seconds'] - usual:+.0f} | {blamed.replace('|', '/')} | "
            f"{sum(one['peak_mb'].values()):.0f} | {after - before:+.1f} | "
            f"{'no: ' + ', '.join(one['unclean']) if one['unclean'] else 'yes'} |\n"
        )
    return text


def main() -> int:
    """Do the trials that are missing, and write the table if asked to."""
    parser = argparse.ArgumentParser(description="One malicious device in a fleet.")
    parser.add_argument("--findings", type=Path, help="write FINDINGS.json")
    parser.add_argument("--only", default="", help="modes, with commas; default: all")
    parser.add_argument("--be", default="", help=argparse.SUPPRESS)
    parser.add_argument("--vault", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be:
        be(options.be, options.vault)
        return 0
    file = options.findings.with_suffix(".json") if options.findings else None
    done = json.loads(file.read_text()) if file and file.exists() else []
    wanted = options.only.split(",") if options.only else ["honest", *MODES]
    missing = [mode for mode in wanted if mode not in {one["mode"] for one in done}]
    with tempfile.TemporaryDirectory() as place, Fleet(Path(place), DEVICES) as fleet:
        fleet.open(update="clear", votes="clear", metrics="clear")
        for mode in missing:
            done.append(trial(fleet, mode))
            print(json.dumps(done[-1]), flush=True)
            if file:
                file.write_text(json.dumps(done, indent=1) + "\n")
    if file and any(one["mode"] == "honest" for one in done):
        write_part(file.with_name("reliability.md"), HEADING, section(done))
    return 0 if all(one["completed"] and not one["unclean"] for one in done) else 1


if __name__ == "__main__":
    sys.exit(main())
