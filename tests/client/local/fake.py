"""A stand-in for the process that keeps the model loaded: it says what it is told to."""

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

from idiolect.client.owner import resident
from idiolect.client.owner.resident import asked_of


class FakeKeeper:
    """Listens beside a vault, and answers each conversation with `tokens`.

    Attributes
    ----------
    tokens
        One piece each.
    pace
        Seconds between two.
    asked
        The conversations that came.
    sent
        How many pieces of each were sent before the end, or before who asked had left.
    error
        Said in place of an answer.
    """

    def __init__(self, vault: Path) -> None:
        self.tokens = ["Hel", "", "lo 👍", "!"]
        self.pace = 0.0
        self.error: dict[str, Any] = {}
        self.asked: list[Any] = []
        self.sent: list[int] = []
        self.door = socket.socket(socket.AF_UNIX)
        with resident.reachable(vault) as place:
            self.door.bind(place)
        self.door.listen(4)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self.door.close()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self.door.accept()
            except OSError:
                return
            with line:
                if request := resident.received(line):
                    self._answer(line, json.loads(request))

    def _answer(self, line: socket.socket, request: Any) -> None:
        if request == resident.END:
            return
        self.asked.append(asked_of(request["asked"]))
        begun = {"backbone": "tiny", "chat": True, "tokens": 5, "dropped": 0}
        self.sent.append(0)
        try:
            _say(line, self.error or begun)
            if self.error:
                return
            for number, text in enumerate(self.tokens, 1):
                time.sleep(self.pace)
                _say(line, {"text": text, "end": "", "tokens": number})
                self.sent[-1] = number
            _say(line, {"text": "", "end": "stop", "tokens": len(self.tokens)})
        except OSError:
            pass


def _say(line: socket.socket, message: Any) -> None:
    line.sendall(json.dumps(message).encode() + b"\n")
