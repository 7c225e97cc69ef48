"""At which addresses a process listens, whatever its network is (Linux)."""

import os
import socket
from pathlib import Path


def listening(pid: int) -> tuple[set[tuple[str, int]], set[str]]:
    """Addresses and files at which a process listens, whatever its network is."""
    own: set[str] = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            own.add(os.readlink(entry).removeprefix("socket:[").rstrip("]"))
        except OSError:
            continue
    found: set[tuple[str, int]] = set()
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in own:
                address, port = words[1].split(":")
                packed = bytes.fromhex(address)
                packed = b"".join(
                    packed[i : i + 4][::-1] for i in range(0, len(packed), 4)
                )
                found.add((socket.inet_ntop(family, packed), int(port, 16)))
    files: set[str] = set()
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "00010000" and words[6] in own:
            files.add(words[7] if len(words) > 7 else "")
    return found, files
