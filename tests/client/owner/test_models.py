"""Which models are here is read from files; what one costs here is measured."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest

from idiolect.client import cli
from idiolect.client.owner import models
from idiolect.common.engine.backbone import TINY
from idiolect.common.gguf import convert


@pytest.fixture(autouse=True)
def nothing_else_is_here(tmp_path, monkeypatch):
    scan = partial(huggingface_hub.scan_cache_dir, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", scan)
    monkeypatch.setattr(convert, "smollm2", lambda: None)


def cached(folder: Path, name: str, family: str, readme: str = "", **more: str) -> Path:
    """A model in the hub's cache, with the weights of the built-in one."""
    repo = folder / "cache" / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / "0123"
    shutil.copytree(TINY, snapshot)
    config = json.loads((snapshot / "config.json").read_text())
    (snapshot / "config.json").write_text(json.dumps({**config, "model_type": family}))
    (snapshot / "README.md").write_text(readme)
    (repo / "refs").mkdir()
    (repo / "refs" / more.get("ref", "main")).write_text("0123")
    return snapshot


def test_what_is_here_and_what_is_not(tmp_path):
    licence = "---\ntags:\n- a\nlicense: mit\n---\nlicense: other\n"
    cached(tmp_path, "someone/model", "qwen2", licence)
    cached(tmp_path, "someone/llama", "llama", "# no head\nlicense: gpl")
    cached(tmp_path, "someone/other", "mamba")
    cached(tmp_path, "someone/side", "llama", ref="side")
    (cached(tmp_path, "someone/bare", "llama") / "model.safetensors").unlink()
    found = {one.name: one for one in models.models()}
    assert list(found) == ["tiny", "smollm2", "someone/llama", "someone/model"]
    assert found["tiny"].parameters == 950_528
    assert found["tiny"].licence == "Apache-2.0"
    assert found["smollm2"].missing.startswith(f"`{sys.executable} -m pip install gguf")
    model, llama = found["someone/model"], found["someone/llama"]
    assert (model.family, model.licence, model.parameters) == ("qwen2", "mit", 950_528)
    assert llama.licence == "unknown"
    assert (model.tested, llama.tested) == (models.SHAPE, models.FAMILY)
    assert found["tiny"].tested == models.WITH


def test_a_converted_file_is_listed_by_its_path_or_its_folder(tmp_path):
    pytest.importorskip("gguf")
    from ...common.gguf.writing import made, write

    file = write(tmp_path / "mine.gguf", made("qwen3"), "Q4_1")
    folder = convert.converted(file)
    (one,) = (m for m in models.models() if m.family == "qwen3")
    assert one.name == str(file)
    assert one.weights == "dequantised from Q4_1 (mine.gguf)"
    assert one.tested == models.SHAPE
    file.unlink()
    (one,) = (m for m in models.models() if m.family == "qwen3")
    assert one.name == str(folder)
    assert one.parameters > 40_000


def test_a_trial_is_measured_and_kept_for_these_weights(tmp_path, capsys):
    mine = tmp_path / "mine.gguf"
    pytest.importorskip("gguf")
    from ...common.gguf.writing import made, write

    write(mine, made("llama"))
    for name in ("tiny", str(mine)):
        assert cli.main(["models", "--try", name, "--json"]) == 0
        printed = capsys.readouterr()
        found = json.loads(printed.out)
        assert printed.err.startswith(f"trying {name}: it learns 8 made-up pairs")
        assert (found["name"], found["pairs"]) == (name, 8)
        assert found["train"] > 0 and found["load"] > 0 and found["peak_mb"] > 100
        assert found["nll"][1] < found["nll"][0]
        tried = {one.name: one.tried for one in models.models()}
        assert tried[name] == {k: v for k, v in found.items() if k != "name"}
    assert cli.main(["models"]) == 0
    assert capsys.readouterr().out.count("s for 8 pairs (") == 2
    write(mine, made("llama", seed=1))
    convert.converted(mine)
    tried = [one.tried for one in models.models() if one.name == str(mine)]
    assert len(tried) == 2  # of the file as it was, and of the file as it is
    assert sum(one is not None for one in tried) == 1


def test_a_damaged_record_is_no_defect_and_a_wrong_name_is_named(tmp_path, capsys):
    models._file().parent.mkdir(parents=True, exist_ok=True)
    models._file().write_text("[")
    assert cli.main(["models"]) == 0
    assert "not measured here" in capsys.readouterr().out
    assert cli.main(["models", "--try", "./none"]) == 2
    assert "neither a folder nor a GGUF file" in capsys.readouterr().err
