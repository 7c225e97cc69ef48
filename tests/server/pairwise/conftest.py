"""A finished simulation of six users, with outputs that were written by hand."""

import json
from pathlib import Path

import pytest

from idiolect.common.config import parse, to_toml
from idiolect.common.data.load import load_dataset
from idiolect.common.files import file_name
from idiolect.server.run.entry import identity_of
from idiolect.server.run.results import write_json
from tests.server.run.test_results import make

KEYS = {"users": 6, "development-users": 0, "history": 6, "held-out": 2}
METHODS = ("shared", "sft", "c-bpo")
GOOD, BAD = "by the user", "by a machine"


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`sft` writes GOOD for the first four users, `c-bpo` for the others and the first."""
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path))
    monkeypatch.delenv("IDIOLECT_JUDGE_KEY", raising=False)
    config = parse(KEYS)
    dataset = load_dataset(config)
    folder = tmp_path / "runs" / "seen"
    users: dict[str, dict[str, dict[str, float]]] = {}
    for number, user in enumerate(dataset.users):
        written = {"sft": number < 4, "c-bpo": number in (0, 4, 5), "shared": False}
        users[user.id] = {
            m: {"nll": 2.0 - written[m] + number, "rouge-l": float(written[m])}
            for m in METHODS
        }
        for method, good in written.items():
            items = [
                {
                    "prompt": item.prompt.text,
                    "reference": item.target,
                    "output": f"{GOOD if good else BAD} {k}\nand more",
                }
                for k, item in enumerate(user.held_out)
            ]
            path = folder / "texts" / method / f"{file_name(user.id)}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"user": user.id, "items": items}))
    found = make(users=users, alpha={}, alpha_estimated=False)
    found["run"] |= {"name": "seen", "simulation": True}
    found["identity"] = identity_of(config, dataset, "", {})
    write_json(folder / "results.json", found)
    (folder / "config.toml").write_text(to_toml(config))
    return folder
