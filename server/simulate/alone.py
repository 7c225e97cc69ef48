"""A network of one's own (Linux): a process in it can be reached by nobody outside it.

Ports on 127.0.0.1 are open to every account of a machine, and a token only keeps strangers
from being obeyed: one empty call of Ray's `RaySyncer/StartSync`, without any token, ends
its GCS. In a network namespace there is another 127.0.0.1, which only the processes that
were started in it can see. Nothing here imports what starts threads: the kernel gives a
namespace of users to a process with one thread only.
"""

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
IFREQ = "16sh14x"  # name of the interface, flags


def leave_the_network() -> bool:
    """Move this process into a network that holds nothing but its own loopback.

    Returns
    -------
    bool
        False where this account may not (containers often forbid it): then nothing has
        changed.
    """
    child = os.fork()  # tries first: half of it done could not be undone
    if not child:
        done = False
        try:
            _leave()
            done = True
        finally:
            os._exit(0 if done else 1)
    if os.waitpid(child, 0)[1]:
        return False
    _leave()
    return True


def _leave() -> None:
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):  # the right of root
        # A namespace of users of its own gives everybody else the right.
        if libc.unshare(CLONE_NEWNET | CLONE_NEWUSER):
            raise OSError(ctypes.get_errno(), "unshare")
        own = Path("/proc/self")
        (own / "setgroups").write_text("deny")
        (own / "uid_map").write_text(f"{user} {user} 1")
        (own / "gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack(IFREQ, b"lo", 0)
        _, now = struct.unpack(IFREQ, fcntl.ioctl(any_socket, SIOCGIFFLAGS, asked))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack(IFREQ, b"lo", now | IFF_UP))
