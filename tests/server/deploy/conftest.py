"""A folder with the keys of a server."""

from pathlib import Path

import pytest

from idiolect.server.deploy import keys

APP = Path(__file__).resolve().parents[3] / "simulations" / "lamp"


@pytest.fixture
def folder(tmp_path) -> Path:
    keys.keys_init(tmp_path / "server", ["lab.example.org", "192.0.2.7"], 9443)
    return tmp_path / "server"
