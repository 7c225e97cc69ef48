"""Intervals over users, the shape of results.json, and the tables."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from idiolect.common.config import parse, to_toml
from idiolect.common.errors import IdiolectError
from idiolect.server.privacy.card import card
from idiolect.server.privacy.ledger import Ledger
from idiolect.server.run import results

METHODS = ("base", "shared", "sft", "bco", "c-bpo")


LEDGER = Ledger(
    None,
    math.inf,
    1e-6,
    open_releases=[
        {"stage": "metrics", "what": "in the clear", "why": "simulation"},
    ],
)


def make_users(count: int = 12) -> dict[str, dict[str, dict[str, float]]]:
    """User i has nll i + 10 in `base`, and one less in every further method."""
    return {
        f"u{i:02d}": {m: {"nll": 10.0 + i - k} for k, m in enumerate(METHODS)}
        for i in range(count)
    }


def make(**changes: Any) -> dict[str, Any]:
    users = changes.pop("users", make_users())
    run = {"name": "r", "task": "headline", "backbone": "tiny", "seed": 0}
    cost = {"bytes_up": 2_000_000, "bytes_down": 1, "seconds": {"adapt": 3.0}}
    given: dict[str, Any] = {
        "run": run | changes.pop("run", {}),
        "users": users,
        "alpha": {user: i / 100 for i, user in enumerate(users)},
        "alpha_estimated": True,
        "cost": cost,
        "privacy": card(LEDGER, "r", "1", "abc"),
        "seed": 0,
        "resamples": 500,
    }
    return results.build(**(given | changes))


def printed(found: dict[str, Any], width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    results.render(found, console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


# --- statistics ------------------------------------------------------------------------


def test_an_interval_is_as_wide_as_theory_says() -> None:
    """For 400 normal users the interval is close to mean ± 1.96 s / sqrt(n)."""
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = results.bootstrap(values, seed=1, resamples=4000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["ci95"][0] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found["ci95"][1] == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert found["n"] == 400


def test_intervals_cover_the_truth() -> None:
    """A percentile interval of 30 users covers about 93.5 %, of 95 % nominal.

    Fewer than 174 of 200, or all 200, would then have a chance of 2e-4.
    """
    generator = np.random.default_rng(5)
    covered = 0
    for repeat in range(200):
        found = results.bootstrap(generator.normal(0, 1, 30), repeat, 400)
        covered += found["ci95"][0] <= 0 <= found["ci95"][1]
    assert 174 <= covered < 200


def test_an_interval_is_seeded() -> None:
    values = np.arange(10.0)
    one, two, other = (results.bootstrap(values, seed, 300) for seed in (1, 1, 2))
    assert one == two
    assert one["ci95"] != other["ci95"]


def test_one_user_has_no_interval() -> None:
    found = results.bootstrap(np.array([2.5]), 0, 100)
    assert found == {"mean": 2.5, "ci95": None, "n": 1}


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert results.bootstrap(np.full(5, 0.5), 0, 100)["ci95"] == [0.5, 0.5]


def test_pairing_removes_what_users_have_in_common() -> None:
    """Users differ by up to 11, methods by exactly 1: the paired interval is a point."""
    users = make_users()
    found = results.paired(users, "sft", "shared", 0, 500)["nll"]
    assert found["ci95"] == pytest.approx([-1.0, -1.0])
    alone = results.summarise([m["sft"] for m in users.values()], 0, 500)["nll"]
    assert alone["ci95"][1] - alone["ci95"][0] > 2


def test_pairs_use_only_users_who_have_both() -> None:
    users = make_users(4)
    del users["u00"]["sft"]
    users["u01"]["sft"]["nll"] = math.nan
    found = results.paired(users, "c-bpo", "sft", 0, 100)["nll"]
    assert found["n"] == 2
    assert found["mean"] == pytest.approx(-2.0)


def test_values_that_are_not_there_are_not_zero() -> None:
    rows = [{"nll": 1.0, "f1": None}, {"nll": None}, {"nll": math.inf}, {"nll": 3.0}]
    found = results.summarise(rows, 0, 100)
    assert found["nll"]["mean"] == 2.0
    assert found["nll"]["n"] == 2
    assert "f1" not in found


# --- results.json ----------------------------------------------------------------------


def test_the_schema() -> None:
    found = make()
    assert list(found) == [
        "run",
        "methods",
        "pairs",
        "split",
        "users",
        "cost",
        "privacy",
    ]
    assert found["methods"]["base"]["nll"]["mean"] == pytest.approx(15.5)
    assert found["methods"]["c-bpo"]["nll"]["n"] == 12
    assert found["users"]["u03"]["sft"] == {"contrast": None, "nll": 11.0}
    assert found["run"]["alpha"]["u05"] == 0.05
    assert found["run"]["alpha_estimated"] is True
    assert found["privacy"]["epsilon"]["release_observer"] is None
    assert found["privacy"]["mode"] == "simulation"


def test_which_pairs_are_reported() -> None:
    found = make()
    assert list(found["pairs"]) == [
        "shared - base",
        "sft - shared",
        "bco - shared",
        "c-bpo - shared",
        "bco - sft",
        "c-bpo - sft",
        "c-bpo - bco",
    ]
    assert found["pairs"]["c-bpo - sft"]["nll"]["mean"] == pytest.approx(-2.0)


@pytest.mark.parametrize(
    ("methods", "pairs"),
    [
        ("shared,kto,c-bpo", "kto-shared c_bpo-shared c_bpo-kto"),
        ("c-bpo,shared,positives", "c_bpo-shared positives-shared c_bpo-positives"),
        ("base,c-bpo", "c_bpo-base"),
        ("bco,c-bpo", "c_bpo-bco"),
        ("rag,c-bpo", "c_bpo-rag"),
        ("base,rag", "rag-base"),
        ("shared,rag,pag", "rag-shared pag-shared"),
        ("base,shared,rag,cope", "shared-base rag-shared cope-shared cope-rag"),
        ("c-bpo", ""),
    ],
)
def test_every_trained_method_is_compared_with_what_was_run(methods, pairs) -> None:
    """Plain SFT need not be among the methods."""
    found = results.pairs_of(methods.split(","))
    named = [tuple(p.replace("_", "~").split("-")) for p in pairs.split()]
    assert found == [tuple(n.replace("~", "-") for n in pair) for pair in named]


@pytest.mark.parametrize("width", [30, 60, 80, 10**6])
def test_a_list_cuts_no_name(width: int) -> None:
    long = "a-run-with-a-name-that-is-longer-than-any-terminal-is-wide-" + "x" * 30
    rows = [("run", "state"), (long, "finished"), ("short", "running")]
    lines = results.listed(rows, width)
    assert [line.split()[0] for line in lines if long in line] == [long]
    assert any(line.split()[0] == "short" for line in lines)
    assert all(len(line) <= width for line in lines if long not in line)
    if width == 10**6:
        assert lines[2] == "short" + " " * (len(long) - 5 + 2) + "running"
    else:
        assert "    state running" in lines


def test_notes_are_broken_between_words() -> None:
    path = "results: /a/path with blanks/" + "x" * 90
    assert results.wrapped(path, 80) == [path]
    line = "not covered: " + "single-updates " * 20
    parts = results.wrapped(line, 80)
    assert all(len(part) <= 80 for part in parts)
    assert " ".join(" ".join(parts).split()) == line.strip()


def test_what_the_noise_swamps_is_marked() -> None:
    def value(mean: float, noise: float, bound: float) -> dict[str, Any]:
        ends = [max(mean - 1.96 * noise, 0.0), min(mean + 1.96 * noise, bound)]
        return {"mean": mean, "ci95": ends, "n": 9, "noise": noise, "bound": bound}

    found = make(users={}, run={"users": 9})
    found["methods"] = {
        "shared": {"nll": value(1.5, 0.4, 8.0), "rouge-1": value(0.0, 0.1, 1.0)},
        "sft": {"nll": value(7.0, 3.0, 8.0), "rouge-1": value(0.8, 0.3, 1.0)},
        "kto": {},
    }
    text = printed(found)
    marked = [word for word in text.split() if word.endswith("?") and word != "?"]
    assert marked == ["0.000?", "7.000?", "0.800?"]  # a value, and 2/8 of the range
    assert "? noise swamps this value" in text
    assert "nothing is left of kto: noise swamps the number of users" in text
    assert "no differences between methods" in text
    assert "noise swamps" not in printed(make())


def test_users_below_the_median_alpha_are_unique() -> None:
    split = make()["split"]
    assert split["unique"]["base"]["nll"]["mean"] == pytest.approx(12.5)  # u00 ... u05
    assert split["non-unique"]["base"]["nll"]["mean"] == pytest.approx(18.5)
    assert split["unique"]["base"]["nll"]["n"] == 6


def test_a_fixed_alpha_splits_nobody() -> None:
    found = make(alpha_estimated=False)
    assert found["split"] == {}
    assert "alpha was not estimated" in printed(found)


def test_equal_alphas_leave_no_unique_users() -> None:
    groups = results.split_by_alpha({"a": 0.5, "b": 0.5})
    assert groups == {"unique": [], "non-unique": ["a", "b"]}


def test_the_same_inputs_give_the_same_results() -> None:
    assert make() == make()
    assert make(seed=1)["methods"] != make()["methods"]


def test_json_knows_no_nan(tmp_path: Path) -> None:
    odd = {"a": [math.nan, (math.inf, np.float32(0.5), np.int64(3))], 7: True}
    results.write_json(tmp_path / "x.json", odd)
    read = json.loads((tmp_path / "x.json").read_text())
    assert read == {"a": [None, [None, 0.5, 3]], "7": True}
    assert type(read["7"]) is bool
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    results.write_json(tmp_path / "x.json", {"old": 1})
    with pytest.raises(TypeError):
        results.write_json(tmp_path / "x.json", {"new": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"old": 1}


def test_write_and_load_through_latest(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "latest").symlink_to("one")
    results.write_json(tmp_path / "one" / "results.json", make())
    assert results.load(str(tmp_path), "latest") == json.loads(json.dumps(make()))


def test_loading_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(IdiolectError, match="there is no run 'x'"):
        results.load(str(tmp_path), "x")
    with pytest.raises(IdiolectError, match="there is no run"):
        results.load(str(tmp_path), f"../{tmp_path.name}")
    (tmp_path / "x").mkdir()
    with pytest.raises(IdiolectError, match="'interrupted'.*--resume x"):
        results.load(str(tmp_path), "x")
    (tmp_path / "x" / "results.json").write_text('{"run":\n')
    with pytest.raises(IdiolectError, match="damaged at line 2"):
        results.load(str(tmp_path), "x")


# --- run folders -----------------------------------------------------------------------


def test_runs_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert results.runs_folder("here") == tmp_path / "here"
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path / "home"))
    assert results.runs_folder() == tmp_path / "home" / "runs"
    monkeypatch.delenv("IDIOLECT_HOME")
    assert results.runs_folder() == Path.home() / ".idiolect" / "runs"


def test_events_are_read_once_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert results.read_events(file) == ([], 0)
    file.write_text('{"event": "start"}\ntorn{"event"\n[1]\n{"event": "pha')
    events, offset = results.read_events(file)
    assert [event["event"] for event in events] == ["start"]
    with file.open("a") as stream:
        stream.write('se"}\n')
    events, _ = results.read_events(file, offset)
    assert [event["event"] for event in events] == ["phase"]


def test_the_state_is_that_of_the_last_start(tmp_path: Path) -> None:
    def after(*names: str) -> str:
        lines = "".join(f'{{"event": "{name}"}}\n' for name in names)
        (tmp_path / "metrics.jsonl").write_text(lines)
        return results.state_of(tmp_path)

    assert after("start", "phase") == "interrupted"
    assert after("start", "failed") == "failed"
    assert after("start", "failed", "start", "progress") == "interrupted"
    assert after("start", "failed", "start", "finished") == "finished"
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"event": "start"}\n{"event": "failed", "stopped": true}\n')
    assert results.state_of(tmp_path) == "stopped"


def test_runs_are_listed_by_their_start(tmp_path: Path) -> None:
    for name, started in (("b", 10.0), ("a", 20.0)):
        (tmp_path / name).mkdir()
        toml = to_toml(parse({"users": 3, "development-users": 2}))
        (tmp_path / name / "config.toml").write_text(toml)
        event = json.dumps({"event": "start", "time": started})
        (tmp_path / name / "metrics.jsonl").write_text(event + "\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / ".scratch").mkdir()
    (tmp_path / "latest").symlink_to("a")
    lines = results.runs(str(tmp_path))
    assert [line["name"] for line in lines] == ["broken", "b", "a"]
    assert (lines[1]["users"], lines[1]["state"]) == (3, "interrupted")
    assert lines[0]["task"] == "?"


# --- tables ----------------------------------------------------------------------------


def test_the_tables_say_everything() -> None:
    run = {
        "learning_rates": {"sft": 0.003},
        "failed": {"u99": "loss not finite.", "u98": "it is late."},
        "dropped": {"empty history": 2},
        "truncated": 4,
        "path": "/runs/r",
    }
    text = printed(make(run=run))
    assert "headline · tiny · 12 users · seed 0" in text
    assert "nll ↓" in text
    assert "15.500" in text
    assert "-2.000*" in text  # c-bpo - sft, clear of zero
    assert "unique users (6: alpha below the median)" in text
    assert "learning rates: sft 0.003" in text
    assert "users failed: u99: loss not finite; u98: it is late\n" in text
    assert "users left out: empty history: 2" in text
    assert "prompts shortened to fit the context: 4" in text
    assert "time: adapt 3 s" in text
    assert "sent: 2.0 MB up, 0.0 MB down" in text
    assert "epsilon: infinite, no privacy guarantee" in text
    assert "simulation: metrics: in the clear" in text
    assert "fewer than 20 users" in text
    assert text.rstrip().endswith("results: /runs/r")


def test_an_interval_around_zero_is_not_marked() -> None:
    users = {
        f"u{i}": {"sft": {"nll": 1.0}, "bco": {"nll": 1.0 + (-1) ** i}}
        for i in range(20)
    }
    found = make(users=users)
    low, high = found["pairs"]["bco - sft"]["nll"]["ci95"]
    assert low < 0 < high
    assert "+0.000\n" in printed(found).replace(" ", "")
    assert "+0.000*" not in printed(found)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_number_is_cut_off(width: int) -> None:
    metrics = ("nll", "contrast", "rouge-1", "rouge-l", "own-style", "shared-style")
    users = {
        f"u{i}": {
            m: {metric: k + i / 7 for k, metric in enumerate(metrics)} for m in METHODS
        }
        for i in range(20)
    }
    text = printed(make(users=users), width)
    assert "…" in text
    for k, metric in enumerate(metrics):
        assert metric in text
        assert f"{k + 9.5 / 7:.3f}" in text
    tables = [line for line in text.splitlines() if line.startswith(METHODS)]
    assert max(map(len, tables)) <= width


def test_contrast_is_absent_where_nobody_has_rivals() -> None:
    found = make()
    assert found["users"]["u00"]["base"]["contrast"] is None
    said = printed(found)
    assert "contrast is absent: no item has other users' texts" in said
    base, *_ = [line for line in said.splitlines() if line.startswith("base ")]
    assert base.split() == ["base", "15.500", "–"]


def test_an_old_run_on_devices_shows_no_contrast() -> None:
    """It has .5 everywhere in its file."""
    users = {
        user: {m: row | {"contrast": 0.5} for m, row in methods.items()}
        for user, methods in make_users().items()
    }
    old = make(users=users, run={"task": "text"})
    assert old["methods"]["base"]["contrast"]["mean"] == 0.5
    said = printed(old)
    assert " 0.500" not in said and "contrast is absent" in said
    # With rivals it is as it was.
    assert " 0.500" in printed(make(users=users))
    assert "contrast is absent" not in printed(make(users=users))
