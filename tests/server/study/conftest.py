"""A study of four cells of a second each."""

import pytest

from idiolect.server.study.declaration import read_study

TEXT = """
title = "A study"
[config]
backbone = "MODEL"
users = 3
development-users = 2
history = 6
held-out = 2
methods = "shared,sft,c-bpo"
"lora.rank" = 2
"lora.targets" = "q,v"
"adapt.rounds" = 1
"unlabeled.bank" = 24
"personalise.epochs" = 1
"personalise.learning-rates" = "3e-3"
"evaluate.generate" = false
"evaluate.bootstrap" = 100
[grid]
seed = [0, 1]
"unlabeled.ratio" = [1.0, 2.0]
[[claims]]
text = "more is better"
metric = "nll"
expect = "lower"
one = { "unlabeled.ratio" = 2.0 }
other = { "unlabeled.ratio" = 1.0 }
"""


@pytest.fixture
def declared(tmp_path, small_model):
    path = tmp_path / "small.toml"
    path.write_text(TEXT.replace("MODEL", small_model))
    return read_study(path)
