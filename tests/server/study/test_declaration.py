"""Declarations of studies: the grid, its cells, and mistakes in them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from idiolect.common.errors import IdiolectError
from idiolect.server.study.declaration import cell_config, cells, read_study

from .conftest import TEXT

EXPERIMENTS = Path(__file__).parents[3] / "simulations" / "lamp" / "experiments"


def test_cells_are_all_combinations(declared):
    assert cells(declared) == [
        {"seed": 0, "unlabeled.ratio": 1.0},
        {"seed": 0, "unlabeled.ratio": 2.0},
        {"seed": 1, "unlabeled.ratio": 1.0},
        {"seed": 1, "unlabeled.ratio": 2.0},
    ]


def test_a_name_of_the_study_stands_for_config_keys(declared):
    named = {"world": {"few": {"history": 2}, "many": {"history": 5, "seed": 3}}}
    grid = {"world": ["few", "many"], "seed": [0]}
    worlds = replace(declared, named=named, grid=grid)
    found = [cell_config(worlds, cell) for cell in cells(worlds)]
    assert [config.history for config in found] == [2, 5]
    assert found[0].lora.rank == 2
    # The grid's own keys come later and win over what a name before them says.
    assert [config.seed for config in found] == [0, 0]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('title = "A study"', "", "needs title"),
        ("[grid]", "[surplus]\n[grid]", "surplus"),
        ("history = 6", "histori = 6", "did you mean 'history'"),
        ('expect = "lower"', 'expect = "better"', "'lower' or 'higher'"),
        (
            'one = { "unlabeled.ratio" = 2.0 }',
            "one = { users = 2 }",
            "not a key of the grid",
        ),
        ('ratio" = 2.0 }', 'ratio" = 7.0 }', "no cell has"),
        ("one = {", 'one = { method = "bco",', "no cell has"),
        ('metric = "nll"', "", "malformed"),
        ("seed = [0, 1]", 'control = ["swopped"]', "use any of none, swapped"),
        ("[grid]", "[grid", "is not TOML"),
        ("[grid]", "[compare]\nx = 'seed'\n[grid]", "table is malformed"),
        ("[grid]", "[[compare]]\nx = 'seed'\n[grid]", "table is malformed"),
        (
            "[grid]",
            "[[compare]]\nx='far'\none={}\nothers=[]\nmetrics=['nll']\n[grid]",
            "use one of seed, unlabeled.ratio",
        ),
        ("[grid]", '[named.world.far]\n[grid]\nworld = ["near"]', "named.world.near"),
        ("[config]", 'measured = "everybody"\n[config]', "'confirmation' or"),
        (
            "[grid]",
            """[[compare]]\nx="seed"\none={method="kto"}\nothers=[{method="sft"}]
            metrics=["nll"]\n[grid]""",
            "no cell has",
        ),
        (
            "[grid]",
            """[[compare]]\nx="seed"\none={}\nothers=[]\nmetrics=["nll"]
            margin={ nil = 0.1 }\n[grid]""",
            "margin for 'nil', which is not among its metrics: nll",
        ),
        (
            "[grid]",
            """[[compare]]\nx="world"\none={}\nothers=[]\nmetrics=["nll"]
            smallest=true\n[named.world.far]\n[grid]\nworld=["far"]""",
            "asks for the smallest world, which has values that are no numbers",
        ),
        (
            "[grid]",
            '[plot]\nx="far"\n[grid]',
            r"\[plot\] has x = 'far', which is not a key",
        ),
        (
            "[grid]",
            '[plot]\nx="seed"\ncorrelate=["nll"]\n[grid]',
            "two metrics or more",
        ),
        *(
            ("[grid]", f'[plot]\nx="seed"\nfrontier={{{given}}}\n[grid]', sentence)
            for given, sentence in (
                ('x="nll", y="mrr"', "may have paths and margin; found too little"),
                ('x="nll", y="mrr", along="seed", z=1', "margin; found z"),
                (
                    'x="nll", y="mrr", along="far"',
                    "along = 'far': use one of seed, unlab",
                ),
                (
                    'x="nll", y="mrr", along="seed", paths={a=[0, 7]}',
                    "a path over 7, which is no value of seed",
                ),
                (
                    'x="nll", y="mrr", along="seed", margin={own=1}',
                    "margin for 'own', which is on neither axis",
                ),
            )
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, old, new, sentence):
    path = tmp_path / "bad.toml"
    path.write_text(TEXT.replace("MODEL", "tiny").replace(old, new))
    with pytest.raises(IdiolectError, match=sentence):
        read_study(path)


def test_those_who_are_measured_do_not_choose_the_rate(tmp_path):
    path = tmp_path / "bad.toml"
    text = TEXT.replace("MODEL", "tiny").replace('"3e-3"', '"1e-3,3e-3"')
    path.write_text(text)
    read_study(path)
    path.write_text(text.replace("[config]", 'measured = "development"\n[config]'))
    with pytest.raises(IdiolectError, match=r"give one in personalise\.learning-rates"):
        read_study(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(IdiolectError, match="cannot be read"):
        read_study(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    "path", sorted(EXPERIMENTS.glob("*.toml")), ids=lambda p: p.stem
)
def test_shipped_experiments_are_well_formed(path):
    declared = read_study(path)
    assert declared.question and declared.reading
    if declared.audit is None:
        chosen = declared.measured == "development"  # to choose, not to claim
        assert chosen or declared.claims or declared.compare
        assert declared.plot["x"] in declared.grid
    assert json.dumps(cells(declared))
