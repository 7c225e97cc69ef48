"""Where a server's folder keeps what more than one module of this room reads."""

from pathlib import Path

DATABASE = Path("flower", "state.db")  # the SuperLink's
HANDED = "handed"  # folder with a note on each run that was submitted to this server
LOG = "server.log"  # what the server's processes print
COUNTS = "proxy.counts"
