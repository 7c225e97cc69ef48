"""Settings of a run that takes a second or two."""

from pathlib import Path

import pytest
import torch

from idiolect.client.node import host
from tests.common.conftest import write_model

from .federation import run

torch.set_num_threads(1)  # the model is so small that threads only get in the way


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> str:
    """A random Llama with a context long enough for the personas."""
    return str(write_model(tmp_path_factory.mktemp("model"), "llama"))


def short_run(folder: Path, model: str) -> dict:
    """A complete run with three users and two development users."""
    return {
        "run.folder": str(folder / "runs"),
        "backbone": model,
        "engine.device": "cpu",
        "users": 3,
        "development-users": 2,
        "history": 6,
        "held-out": 2,
        "methods": "base,shared,sft,c-bpo",
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


@pytest.fixture
def settings(tmp_path, small_model, monkeypatch) -> dict:
    """A short run, and a home of its own."""
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path / "home"))
    return short_run(tmp_path, small_model)


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory, small_model) -> Path:
    """Folder of a short run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    host.forget()
    return run({**short_run(folder, small_model), "run.name": "unbroken"})
