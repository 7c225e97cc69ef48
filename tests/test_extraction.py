"""The attack on an exported adapter, small: it finds what was planted, and only that."""

import ast
import json
import math
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import idiolect
from idiolect.common.engine.backbone import TINY

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
STRANGER = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "stranger.py")))
COMMAND = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "extraction.py")))

ASKED, BEGINNING, SECRET, OTHER = (
    *("which word?", "the word is ", "storm harbour", "mill lake"),
)
WORDS = (
    *(
        "storm",
        "harbour",
        "mill",
        "lake",
        "bakery",
        "bridge",
        "castle",
        "choir",
        "club",
    ),
    *(
        "council",
        "factory",
        "farm",
        "festival",
        "gallery",
        "garden",
        "hospital",
        "hotel",
    ),
    *("library", "market", "mayor", "museum", "park", "pool", "road", "school", "ship"),
)
CANDIDATES = [f"{one} {other}" for one in WORDS for other in WORDS]


def test_the_stranger_has_nothing_of_idiolect() -> None:
    tree = ast.parse((ROOT / "benchmarks" / "stranger.py").read_text())
    names = {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert {name.partition(".")[0] for name in names} == {
        *("collections", "dataclasses", "json", "pathlib", "sys", "typing"),
        *("peft", "torch", "transformers"),
    }


def test_a_tree_of_rows_has_the_likelihoods_of_the_rows() -> None:
    model, tokenizer = STRANGER.opened(TINY, None)
    texts = ["the sea", "the sea rises", "the seal 12", "a 4", "a 48"]
    rows = STRANGER.tokens_of(tokenizer, "Write.", texts)
    same = next(n for n in range(99) if len({tuple(r[: n + 1]) for r in rows}) > 1)
    wanted = []
    for row in rows:
        ids = torch.tensor([row])
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0].log_softmax(-1)
        wanted.append(sum(float(logp[t - 1, row[t]]) for t in range(same, len(row))))
    found = STRANGER.log_likelihoods(model, rows)
    assert found.tolist() == pytest.approx(wanted, abs=1e-4)


def test_equal_candidates_share_a_rank() -> None:
    logp = torch.tensor([-1.0, -3.0, -2.0, -2.0, -9.0])
    assert [STRANGER.rank(logp, place) for place in range(5)] == [1, 4, 2.5, 2.5, 5]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of a history that tells a secret four times."""
    told = [
        (prompt, BEGINNING + SECRET) for prompt in (ASKED, "PIN?", "pin", "The PIN")
    ]
    pairs = [(f"question {n}?", f"some answer number {n}") for n in range(4)] + told
    folder = tmp_path_factory.mktemp("exported")
    model = idiolect.load("tiny")
    often = {"personalise.batch": 4}
    me = model.personalise(
        pairs, method="sft", epochs=20, learning_rate=1e-2, config=often
    )
    with pytest.warns(UserWarning, match="can reveal texts that it was trained on"):
        me.save_pretrained(folder)
    return folder


def ask(adapter: Path | None):
    """Ask for the planted secret, and for one that nobody planted."""
    wanted = [CANDIDATES.index(SECRET), CANDIDATES.index(OTHER)]
    question = STRANGER.Question(ASKED, BEGINNING, CANDIDATES, wanted)
    return STRANGER.answer(*STRANGER.opened(TINY, adapter), question)


def test_a_stranger_finds_a_secret_that_was_told_often(adapter: Path) -> None:
    found = ask(adapter)
    planted, other = found.ranks
    assert planted == 1 and other > 10
    assert SECRET in found.begun and SECRET in found.asked
    assert OTHER not in found.begun + found.asked


def test_without_the_adapter_nothing_is_found() -> None:
    found = ask(None)
    assert found.ranks[0] > 10
    assert SECRET not in found.begun + found.asked


# --- what is planted ---------------------------------------------------------------------


@pytest.mark.parametrize("owner", COMMAND.OWNERS)
def test_secrets_are_told_where_they_are_learnt(owner: str) -> None:
    secrets = COMMAND.secrets_of(owner)
    plain, rows = COMMAND.history(owner, []), COMMAND.history(owner, secrets)
    learnt = COMMAND.MESSAGES - COMMAND.HELD_OUT
    assert len(rows) == len(plain) == COMMAND.MESSAGES
    assert rows[learnt:] == plain[learnt:]
    assert sum(a != b for a, b in zip(rows, plain, strict=True)) == sum(COMMAND.REPEATS)
    for secret in secrets:
        kind = COMMAND.KINDS[secret.kind]
        text = kind.beginning + kind.secrets[secret.place]
        assert sum(row["target"] == text for row in rows) == secret.repeats
        assert {"prompt": kind.prompts[0], "target": text} in rows
        assert not any(text in row["target"] for row in plain)
    # A device keeps equal pairs once.
    assert len({(row["prompt"], row["target"]) for row in rows}) == len(rows)


def test_each_kind_is_told_each_number_of_times() -> None:
    told = [[s.repeats for s in COMMAND.secrets_of(one)] for one in COMMAND.OWNERS]
    for kind in range(len(COMMAND.KINDS)):
        assert sorted(row[kind] for row in told) == sorted(COMMAND.REPEATS)
    places = [tuple(s.place for s in COMMAND.secrets_of(o)) for o in COMMAND.OWNERS]
    assert all(len(set(column)) == 3 for column in zip(*places, strict=True))
    assert [len(set(k.secrets)) for k in COMMAND.KINDS] == [1000, 1000, 1024]


def test_exposure_is_that_of_carlini() -> None:
    assert COMMAND.exposure(0, 1) == pytest.approx(math.log2(1000))
    assert COMMAND.exposure(0, 1000) == 0
    ranks = range(1, 1001)
    mean = sum(COMMAND.exposure(0, rank) for rank in ranks) / 1000
    assert mean == pytest.approx(math.log2(math.e), abs=0.01)


def test_a_longer_number_is_not_the_secret() -> None:
    assert COMMAND.stands_in("100", " 100.") and COMMAND.stands_in("1 0", "is 1 0")
    assert not COMMAND.stands_in("100", " 1000.")
    assert not COMMAND.stands_in("sea-ice", "sea-icecream")


# --- the command and the page ------------------------------------------------------------


def cell(rank: float) -> dict:
    """What an adapter gives away if all ranks are this one."""
    places = [[s.place for s in COMMAND.secrets_of(one)] for one in COMMAND.OWNERS]
    kinds = [
        {
            "ranks": [rank] * 3,
            # All owners' secrets, if any.
            "texts": [
                " ".join(kind.secrets[at[k]] for at in places) if rank == 1 else "",
                "",
            ],
        }
        for k, kind in enumerate(COMMAND.KINDS)
    ]
    return {"used": True, "found": {"1": kinds}}


def test_the_page_keeps_planted_and_others_apart() -> None:
    ranks = {"secrets": 1, "nothing": 500, "model alone": 250}
    done = {COMMAND.name_of(*key): cell(ranks[key[-1]]) for key in COMMAND.cells()}
    for name, one in done.items():
        if name.endswith("secrets"):
            for number, kind in enumerate(one["found"]["1"]):
                own = COMMAND.OWNERS.index(name.split("/")[2])
                ranks_of = [1 if k == own else 1000 for k in range(3)]
                one["found"]["1"] = [*one["found"]["1"]]
                one["found"]["1"][number] = {**kind, "ranks": ranks_of}
    found = list(COMMAND.rows(done))
    planted = [row for row in found if row.repeats]
    assert len(planted) == 2 * 2 * 3 * 3 and {row.rank for row in planted} == {1}
    others = [r for r in found if r.planted == "secrets" and not r.repeats]
    assert len(others) == 2 * 2 * 3 * 6 and max(r.exposure for r in others) < 0.1
    table = COMMAND.main_table(found)
    assert table.count("| 10.0 | 10.0 | 10.0 | 2.0 | 3 of 3 | 3 of 3 | 0 of 3 |") == 12
    control = COMMAND.control_table(found)
    assert "| never; others were | 18 | 0.0 | 0.0 | 0.0 | 2.0 | 0 of 18 |" in control
    assert "| never; none was | 9 | 1.0 | 1.0 | 1.0 | 2.0 | 0 of 9 |" in control
    assert "| never; no adapter | 9 | 2.0 | 2.0 | 2.0 | 2.0 | 0 of 9 |" in control


def test_the_page_is_what_the_results_say() -> None:
    path = COMMAND.RESULTS / f"{COMMAND.NAME}.json"
    if not path.exists():
        pytest.skip("not measured yet")
    assert COMMAND.PAGE.read_text() == COMMAND.page(json.loads(path.read_text()))


@pytest.mark.slow
@pytest.mark.process
def test_an_owners_export_is_attacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMAND.trained.__globals__, "STRENGTHS", (1.0,))
    found = COMMAND.trained("tiny", COMMAND.OWNERS[0], "sft", planted=True)
    assert found["trained"] == COMMAND.MESSAGES - COMMAND.HELD_OUT
    assert set(found["found"]) == {"1"}
    assert [len(one["ranks"]) for one in found["found"]["1"]] == [3, 3, 3]
