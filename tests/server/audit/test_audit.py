"""Audits of the aggregation that runs, and attacks on a finished run."""

import dataclasses
import hashlib
import json
import math

import numpy as np
import pytest

from idiolect.common.config import parse_run
from idiolect.common.errors import IdiolectError
from idiolect.common.seeds import numpy_generator
from idiolect.server import cli
from idiolect.server.audit import attacks, audit, mechanism
from idiolect.server.findings.page import load
from idiolect.server.privacy.ledger import read_ledger
from idiolect.server.run import adapt
from idiolect.server.study.declaration import read_study
from tests.server.federation import FakeGrid, results, run
from tests.server.run.test_privacy import CENTRAL

DESIGN = attacks.Design()


@pytest.fixture(autouse=True)
def fixed_noise(monkeypatch):
    """Noise from a seed for what draws from the operating system: always the same."""
    real, drawn = mechanism.source, numpy_generator(0, "noise").bytes
    monkeypatch.setattr(
        mechanism, "source", lambda seeded, seed: real(True, seed) if seeded else drawn
    )


def test_the_noise_of_an_audit_costs_what_it_claims():
    assert mechanism.noise_for(DESIGN) == pytest.approx(14.92, abs=0.02)
    claimed = mechanism.claims(DESIGN)
    assert claimed[attacks.DIFFERENCED] == pytest.approx(1.0, abs=0.01)
    assert 0 < claimed[attacks.SUMMED] < claimed[attacks.DIFFERENCED]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_honest_aggregation_is_within_its_claim(seed):
    """With the operating system's noise 3 honest audits in 10,000 would alarm."""
    found = mechanism.audit_mechanism(DESIGN, "honest", seed)
    assert [one.name for one in found] == [attacks.SUMMED, attacks.DIFFERENCED]
    assert not mechanism.caught(found, DESIGN)
    assert all(one.largest_detectable > 4 for one in found)
    assert all(one.canaries >= 1000 for one in found)


@pytest.mark.parametrize("control", mechanism.CONTROLS[1:])
def test_every_broken_aggregation_is_caught(control):
    found = mechanism.audit_mechanism(DESIGN, control, 0)
    assert mechanism.caught(found, DESIGN)
    if control == "noise-reused":  # only differences of rounds see it
        assert found[0].epsilon_lower_bound <= mechanism.claims(DESIGN)[attacks.SUMMED]


def test_an_aggregation_that_forgets_to_clip_is_caught(monkeypatch):
    """The audit runs the real code: break that, and the honest audit must alarm."""

    def unclipped(rows, _clip):
        return {n: a.astype(float).sum(0) for n, a in rows.items()}, np.zeros(1)

    monkeypatch.setattr(mechanism, "clipped_sum", unclipped)
    assert mechanism.caught(mechanism.audit_mechanism(DESIGN, "honest", 0), DESIGN)


def test_an_aggregation_that_forgets_its_noise_is_caught(monkeypatch):
    monkeypatch.setattr(adapt, "gaussian", lambda shape, _s, _r: np.zeros(shape))
    assert mechanism.caught(mechanism.audit_mechanism(DESIGN, "honest", 0), DESIGN)


# --- sums to which each user adds noise ------------------------------------------------

SUMS = attacks.Design(rounds=4, secagg=True)


def test_the_noise_of_the_sums_is_that_of_the_members_who_are_honest():
    """Variances add up: the shares of r - c members are the noise that costs the claim."""
    known, honest = mechanism._terms(SUMS, "honest")
    std = math.sqrt(honest * known.variance) * known.grid.unit
    assert std == pytest.approx(mechanism.noise_for(SUMS), rel=0.001)
    assert known.required - honest == 60 and known.most == 600
    assert list(mechanism.claims(SUMS).values()) == pytest.approx([1.0, 1.0], abs=0.01)


@pytest.mark.parametrize("control", mechanism.CONTROLS)
def test_an_audit_of_the_servers_view(control):
    found = mechanism.audit_mechanism(SUMS, control, 0)
    assert mechanism.caught(found, SUMS) == (control != "honest")


def test_what_counts_as_a_defect():
    def entry(control: str, bound: float) -> dict:
        return {"name": f"aggregation, {control}, x", "eps_lb": bound, "claimed": 1.0}

    fine = [entry("honest", 0.4), entry("no-clip", 0.2), entry("no-clip", 3.0)]
    assert audit.defects(fine) == []
    assert "leaks more" in audit.defects([entry("honest", 1.2)])[0]
    assert "was not caught" in audit.defects([entry("no-clip", 0.9)])[0]


# --- declared audits -------------------------------------------------------------------


def test_a_declared_audit_runs_resumes_and_reports(tmp_path, capsys):
    file = tmp_path / "small.toml"
    file.write_text(
        'title = "Small"\nquestion = "Q?"\nreading = "R."\n'
        "[audit]\ncanaries = 1000\n"
        '[grid]\ncontrol = ["honest", "noise-tenth"]\nseed = [0, 1]\n'
    )
    arguments = ["study", str(file), "--output-dir", str(tmp_path / "out")]
    assert cli.main([*arguments, "--findings", str(tmp_path / "findings")]) == 0
    found = load(tmp_path / "findings")["small"]
    assert [(row["control"], row["caught"]) for row in found["rows"]] == [
        ("honest", 0),
        ("noise-tenth", 2),
    ]
    page = (tmp_path / "findings/small.md").read_text()
    assert "| honest | 2 | 0 |" in page and "**Reading.** R." in page
    cells = sorted((tmp_path / "out/small/cells").glob("*.json"))
    before = [cell.stat().st_mtime_ns for cell in cells]
    assert len(cells) == 4
    assert cli.main(arguments) == 0
    assert [cell.stat().st_mtime_ns for cell in cells] == before


@pytest.mark.parametrize(
    ("table", "grid", "match"),
    [
        ("canary = 3", 'control = ["honest"]\nseed = [0]', "canary.*takes claimed"),
        ("", 'control = ["honest"]', "keys 'control' and 'seed'"),
        ("", 'control = ["odd"]\nseed = [0]', "control is 'odd'"),
    ],
)
def test_a_malformed_audit_is_refused(tmp_path, table, grid, match):
    file = tmp_path / "bad.toml"
    file.write_text(f'title = "t"\n[audit]\n{table}\n[grid]\n{grid}\n')
    with pytest.raises(IdiolectError, match=match):
        audit.run_study(read_study(file), tmp_path, print)


# --- a finished run --------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Attack with less of everything."""
    small = dataclasses.replace(DESIGN, dimension=2000)
    monkeypatch.setattr(audit, "Design", lambda: small)
    monkeypatch.setattr(audit, "STRANGERS", 12)
    monkeypatch.setattr(audit, "CODES", 50)
    monkeypatch.setattr(audit, "SAMPLES", 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["votes", "anonymised"])
def test_auditing_a_run_completes_its_card(settings, quick, capsys, kind):
    plain = settings | CENTRAL | {"methods": "shared", "unlabeled.kind": kind}
    plain |= {"unlabeled.buckets": 3, "unlabeled.support": 4, "history": 10}
    folder = run(plain, FakeGrid(5))
    place = ["--output-dir", plain["run.folder"]]
    assert cli.main(["audit", "latest", *place]) == 0
    printed = " ".join(capsys.readouterr().out.split())  # wherever lines are broken
    assert "Audit 'aggregation, honest, summed'" in printed
    assert "caught; broken on purpose" in printed
    card = json.loads((folder / "privacy_card.json").read_text())
    assert card == results(folder)["privacy"]
    names = [entry["name"] for entry in card["audit"]]
    assert names == [
        entry["name"] for entry in read_ledger(folder / "ledger.json").audits
    ]
    assert "membership in the shared adapter" in names
    assert "membership in the unlabeled set" in names
    assert "extraction of a secret written 4 times" in names
    assert ("authorship of the offered items" in names) is (kind == "anonymised")
    # Auditing again replaces what was found, and adds nothing.
    assert cli.main(["audit", "latest", *place]) == 0
    again = json.loads((folder / "privacy_card.json").read_text())
    assert [entry["name"] for entry in again["audit"]] == names


def test_a_run_without_results_cannot_be_audited(tmp_path, capsys):
    assert cli.main(["audit", "none", "--output-dir", str(tmp_path)]) == 2
    assert "there is no run 'none'" in capsys.readouterr().err


def test_a_secret_in_a_history_is_ranked_by_likelihood(settings, quick, monkeypatch):
    """A shared adapter that knows the code must be found to know it."""
    config = parse_run(settings)[0]
    from idiolect.common.data.load import load_dataset
    from idiolect.common.engine.reference import Reference, load_reference

    original = Reference.scores

    def leaky(reference, items):
        found = original(reference, items)
        if len(items) == audit.CODES:  # the first user's code is the first candidate
            found = [1e3, *found[1:]]
        return found

    monkeypatch.setattr(Reference, "scores", leaky)
    found = audit.extraction(load_reference(config), load_dataset(config), config)
    assert [entry["name"].split()[-2] for entry in found] == ["1", "4", "6"]
    assert found[0]["exposure"] == pytest.approx(math.log2(50))
    assert all(entry["exposure"] < entry["highest"] for entry in found[1:])


def test_an_audit_is_named_by_what_it_was_run_with(tmp_path):
    """By its values alone; what an earlier version wrote is found and renamed."""
    (tmp_path / "cells").mkdir()
    design = attacks.Design()
    path = audit.cell_file(tmp_path, design, "honest", 3)
    assert path.name == "f58eb6050521b019.json"
    written = repr((design, "honest", 3)).replace(", secagg=False", "")
    key = hashlib.sha256(written.encode()).hexdigest()[:16]
    old = tmp_path / "cells" / f"{key}.json"
    old.write_text("{}")
    assert audit.cell_file(tmp_path, design, "honest", 3) == path
    assert path.read_text() == "{}" and not old.exists()
    others = {
        audit.cell_file(tmp_path, *cell).name
        for cell in (
            (design, "honest", 4),
            (design, "no-clip", 3),
            (dataclasses.replace(design, rounds=2), "honest", 3),
            (dataclasses.replace(design, secagg=True), "honest", 3),
        )
    }
    assert len(others | {path.name}) == 5
