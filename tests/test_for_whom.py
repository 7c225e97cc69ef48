"""docs/for-whom.md: what its command writes, and other words for other results."""

import gzip
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idiolect.server.findings.page import store
from idiolect.server.findings.summary import summary
from idiolect.server.study.declaration import cell_config, cells, read_study

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
SITUATIONS = runpy.run_path(str(ROOT / "benchmarks" / "situations.py"))
COMMAND = runpy.run_path(str(ROOT / "benchmarks" / "for_whom.py"))
pages: Callable[..., dict[Path, str]] = COMMAND["pages"]
TOLD = ("worlds", "prompting")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Result files of studies on small models, without those on a real one."""
    for name in TOLD:
        shutil.copy(COMMAND["FINDINGS"] / f"{name}.json.gz", tmp_path)
    return tmp_path


def page(folder: Path) -> str:
    return pages(folder)[COMMAND["PAGE"]]


def numbers(folder: Path) -> str:
    return pages(folder)[COMMAND["NUMBERS"]]


def short(folder: Path) -> str:
    """Return the bullet points that come first."""
    return page(folder).split("## In short")[1].split("##")[0]


def change(folder: Path, name: str, **replaced: Any) -> None:
    path = folder / f"{name}.json.gz"
    found = json.loads(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(json.dumps(found | replaced).encode()))


def invent(folder: Path, name: str, means: dict[str, float], spread: float) -> None:
    """Write the result file of a study whose methods have these gains in NLL and MRR.

    A name is that of a method, or of a variant of C-BPO.
    """
    study = read_study(SITUATIONS["STUDIES"] / f"{name}.toml")
    noise = np.linspace(-spread, spread, 24)
    done: list[dict[str, Any]] = []
    for cell in cells(study):
        config = cell_config(study, cell)
        gain = {m: means.get(m, 0.0) for m in config.method_list}
        gain |= {"c-bpo": means.get(str(cell["variant"]), 0.0)}
        users = {
            f"u{k}": {
                method: {
                    "nll": 3 - gain.get(method, 0.0) * (1 + noise[k]),
                    "mrr": 0.5 + gain.get(method, 0.0) * (1 + noise[k]),
                    "recognised-mrr": 0.5 + gain.get(method, 0.0) * (1 + noise[k]),
                }
                for method in config.method_list
            }
            for k in range(config.users)
        }
        run = {"task": config.task, "seed": 0, "overlap": {}, "alpha": {}}
        run |= {"learning_rates": {}, "clamp_rate": {}}
        done.append({"cell": cell, "users": users, "methods": {}, "run": run})
    path = folder / "made.json"
    path.write_text(json.dumps(summary(study, done)))
    store(path, folder, name)
    path.unlink()


def test_the_pages_are_what_the_command_writes() -> None:
    for path, text in pages().items():
        assert path.read_text() == text, "run: python benchmarks/for_whom.py"
    assert len(COMMAND["PAGE"].read_text().splitlines()) <= 95


def test_where_nothing_beats_sft_the_first_sentence_says_so(folder: Path) -> None:
    first = short(folder)
    assert first.strip().startswith("- **Nowhere is C-BPO with its default recipe")
    assert "On a real instruct model with real texts nothing is measured yet." in first
    assert "where a history helps, it is the choice" in first


def test_other_results_make_other_words(folder: Path) -> None:
    found = COMMAND["load"](folder)["worlds"]
    better = [
        entry | {"mean": -0.3, "ci95": [-0.4, -0.2]}
        if (entry["one"], entry["other"], entry["metric"]) == ("C-BPO", "SFT", "nll")
        else entry
        for entry in found["compare"]
    ]
    change(folder, "worlds", compare=better)
    first = short(folder)
    assert "Nowhere is C-BPO" not in page(folder)
    assert "it is the choice" not in first
    assert "better than plain SFT somewhere: by likelihood better in 9" in first
    assert "does better than SFT: likelihood (better in 9 of" in first
    one = "- C-BPO (default) by likelihood, better than SFT: personas' headlines"
    assert one in numbers(folder)


def test_a_gain_that_turns_into_a_loss_harms(folder: Path) -> None:
    found = COMMAND["load"](folder)["worlds"]
    lost = [
        point | {"mean": 0.5, "ci95": [0.4, 0.6]}
        if point["line"].startswith("sft") and point["x"] == "headline-8"
        else point
        for point in found["curve"]
    ]
    assert "harms -39 % [-45, -33]" not in numbers(folder)
    change(folder, "worlds", curve=lost)
    assert "harms -39 % [-45, -33]" in numbers(folder)
    assert "| harms -39 % |" in page(folder)


def test_studies_of_a_real_model_are_taken_in(folder: Path) -> None:
    gains = {"sft": 0.2, "rag": -0.1, "pag": 0.0, "steer": 0.05, "near": 0.4}
    gains |= {"default": 0.1, "paper": 0.1, "sft-crossed": 0.2}
    invent(folder, "real_model", gains, 0.3)
    rows = [
        next(line for line in text.splitlines() if "| authors' news" in line)
        for text in (page(folder), numbers(folder))
    ]
    for row in rows:
        assert "SmolLM2 (135M)" in row and "harms" in row.split("|")[7]
        assert "helps +22 %" in row.split("|")[6]  # e^.2, SFT
    first = short(folder)
    assert "C-BPO (default): likelihood worse in 1 of 1" in first
    assert "C-BPO (paper, near): likelihood better in 1 of 1" in first
    assert "nothing is measured" not in first
    table = numbers(folder).splitlines()
    near = next(x for x in table if x.startswith("| C-BPO (paper, near) against C"))
    assert near.endswith("| better 1 | better 1 | - | - | better 1 |")
    change(folder, "real_model", missing=[{"variant": "kto"}])
    assert "- Not measured yet: real_texts" in page(folder)
    assert "cells of real_model (1)." in page(folder)
    invent(folder, "real_texts", gains, 0.3)
    assert "C-BPO (paper, near): likelihood better in 3 of 3" in short(folder)


def test_an_alpha_that_no_estimate_gives_is_named(folder: Path) -> None:
    invent(folder, "real_model", {"small-alpha": 0.4, "sft": 0.1}, 0.3)
    first = short(folder)
    assert "C-BPO (paper, alpha 0.1): recognisability better in 1 of 1" in first
    assert "alpha 0.5" not in numbers(folder)


def test_without_result_files_nothing_is_claimed(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "better than SFT: not measured." in text
    assert "helps likelihood in" in text and "helps +" not in text
    assert "real_model, real_texts" in text


def test_the_rule_of_recipes_ranks_by_all_measures() -> None:
    ranks = runpy.run_path(str(ROOT / "benchmarks" / "recipe_rule.py"))["ranks"]
    # Weight -> NLL and MRR: the first has the best NLL, the second is good at both.
    values = {0.1: (0.4, 0.5), 0.3: (0.5, 0.8), 1.0: (0.6, 0.7)}
    rows = [
        {
            "cell": {"seed": seed, "world": "a", "weight": weight},
            "method": method,
            "metrics": {"nll": {"mean": nll}, "mrr": {"mean": mrr}},
        }
        for weight, (nll, mrr) in values.items()
        for seed in (0, 1)
        for method in ("sft", "c-bpo")
    ]
    found = ranks(rows)
    assert [recipe[0][1] for recipe in found] == [0.3, 0.1, 1.0]
    assert found[(("weight", 0.1),)] == {"nll": 1.0, "mrr": 3.0, "all": 2.0}


def test_a_comparison_can_be_read_from_the_other_side() -> None:
    pair_of, who, how = (COMMAND[name] for name in ("Pair", "Who", "How"))
    someone, rag, sft = who("a model", "people", 8), how("rag"), how("sft")
    pairs = [pair_of("a study", someone, rag, sft, "nll", "worse")]
    tally, against = COMMAND["tally"], COMMAND["against"]
    assert tally(pairs, rag, sft, "nll") == {"worse": ["people, 8 texts"]}
    assert tally(pairs, sft, rag, "nll") == {"better": ["people, 8 texts"]}
    assert tally(pairs, sft, rag, "mrr") == {}
    pairs += [pair_of("a study", someone, sft, how("c-bpo", "paper"), "nll", "worse")]
    assert against(pairs, "sft", "nll") == {"better": 1}
    assert not against(pairs, "sft", "mrr") and not against(pairs, "positives", "nll")
    # A claim may predict that something is worse; here it is, and the claim is confirmed.
    entry = {"metric": "nll", "expect": "higher", "verdict": "confirmed"}
    assert SITUATIONS["better_or_worse"](entry | {"ci95": [0.1, 0.2]}) == "worse"
