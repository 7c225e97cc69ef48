"""Settings of a run that takes a second or two."""

import pytest

from tests.common.conftest import write_model


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> str:
    """A random Llama with a context long enough for the personas."""
    return str(write_model(tmp_path_factory.mktemp("model"), "llama"))


@pytest.fixture
def settings(tmp_path, small_model, monkeypatch) -> dict:
    """A complete run with three users and two development users."""
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path / "home"))
    return {
        "output-dir": str(tmp_path / "runs"),
        "backbone": small_model,
        "device": "cpu",
        "users": 3,
        "development-users": 2,
        "history": 6,
        "held-out": 2,
        "methods": "base,shared,oppu,c-bpo",
        "deadline": 5.0,
        "lora.rank": 2,
        "lora.targets": "q,v",
        "adapt.rounds": 2,
        "adapt.batch": 4,
        "unlabeled.bank": 24,
        "personalise.epochs": 1,
        "personalise.learning-rates": "1e-3,3e-3",
        "evaluate.generate": False,
        "evaluate.bootstrap": 100,
    }
