"""The page as a browser reads it: structure, policy, size, and what it says."""

import gzip
import json
import math
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from idiolect.common.config import parse, to_toml
from idiolect.common.errors import IdiolectError
from idiolect.server.privacy.card import card
from idiolect.server.report import pictures
from idiolect.server.report.read import phases, write_own, write_report
from idiolect.server.run import results
from tests.common.test_text import HOSTILE
from tests.server.privacy.test_card import programme_g
from tests.server.report.material import many, users_of
from tests.server.run.test_results import make

VOID = {"meta", "br", "hr", "img", "input", "link"}
FINDINGS = Path(__file__).resolve().parents[3] / "docs" / "findings"
NASTY = (
    "</script><img src=x>",
    "<!--<script>",
    "\"'><svg onload=alert(1)>",
    "a\u2028b\u2029c",
    "</style></title><b>",
    "\u202egnp.exe\u2066",
    "שלום {{ 7 * 7 }} $x_1$ &amp;",
    "\x1b[31m\x00\x07",
)


class Read(HTMLParser):
    """Tags, attributes and texts of a page; fails on tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def shape(self) -> list[str]:
        return [tag for tag, _ in self.tags]


def folder_of(place: Path, found: Any, state: Any = None, events: str = "") -> Path:
    """Write a run's folder."""
    folder = place / "runs" / "one"
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(found))
    (folder / "config.toml").write_text(to_toml(parse({"users": 7, "history": 8})))
    (folder / "checkpoint/state.json").write_text(json.dumps(state or {}))
    (folder / "metrics.jsonl").write_text(events)
    return folder


def page_of(place: Path, found: Any, **more: Any) -> Read:
    folder = folder_of(place, found, **more)
    return Read(write_own(folder).read_text())


def nasty(text: str) -> dict[str, Any]:
    """Results in which every name that another could choose is one text."""
    found = make(
        users={
            f"u{k}": {m: {"nll": 1.0 + k} for m in ("shared", "sft")} for k in range(3)
        }
    )
    told = json.dumps(found).replace('"u1"', json.dumps(text))
    found = json.loads(told.replace('"sft', json.dumps(text)[:-1]))
    found["run"] |= {"task": text, "backbone": text, "name": text, "commit": text}
    found["run"]["versions"] = {text: text}
    found["privacy"]["not_covered"] = [text]
    found["privacy"]["open_releases"] = [{"stage": text, "what": text, "why": text}]
    return found


@pytest.fixture
def drawn():
    """Of tests that look at pictures; the others are faster without."""


@pytest.fixture(autouse=True)
def _pictures(request, monkeypatch):
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(pictures, "able", lambda: False)
        monkeypatch.setattr("idiolect.server.report.page.able", lambda: False)


# --- texts are data ---------------------------------------------------------------------


@pytest.mark.parametrize("text", [*NASTY, HOSTILE], ids=lambda text: ascii(text)[:30])
def test_a_text_changes_nothing_in_the_structure(tmp_path, text, drawn):
    plain = page_of(tmp_path, nasty("plain"))
    found = page_of(tmp_path, nasty(text))
    assert found.shape() == plain.shape()
    assert not {"script", "img", "iframe", "object", "link"} & set(found.shape())
    everything = found.text + str([sorted(map(str, a.values())) for _, a in found.tags])
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069]", found.text
    )
    assert "49" not in re.findall(r"שלום (\S+)", everything)


def test_quotes_and_tags_are_shown_as_they_are(tmp_path):
    assert "</script><img src=x>" in page_of(tmp_path, nasty(NASTY[0])).text
    assert "\"'><svg onload=alert(1)>" in page_of(tmp_path, nasty(NASTY[2])).text


def test_a_picture_takes_no_name_for_mathematics(drawn):
    rows = [("$x_1$ <b>", 1.0, (0.5, 1.5)), ("$", 2.0, None)]
    svg = pictures.drawn("p", "t & <i>", "d", 100, pictures.intervals(rows))
    assert "$x_1$ &lt;b&gt;" in svg and "t &amp; &lt;i&gt;" in svg


# --- numbers ----------------------------------------------------------------------------


def test_what_is_not_finite_is_replaced_as_a_value(tmp_path, drawn):
    found = many(3, run={"task": "BaNaNa Infinity"})
    found["methods"]["sft"]["nll"] = {
        "mean": math.nan,
        "ci95": [-math.inf, 1.0],
        "n": 3,
    }
    found["users"]["u001"]["sft"]["nll"] = math.inf
    found["cost"]["peak_rss_mb"] = math.nan
    text = page_of(tmp_path, found).text
    assert "BaNaNa Infinity" in text
    assert not re.search(r"\b(nan|inf)\b", text.replace("BaNaNa Infinity", ""), re.I)
    assert "not available" in text


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_users_give_a_page(tmp_path, count, drawn):
    found = many(count) if count else make(users={}, alpha={})
    text = page_of(tmp_path, found).text
    assert ("nobody won" in text) == (count == 0)
    assert ("no interval" in text) == (count == 1)


def test_a_run_of_an_earlier_version_gives_a_page(tmp_path):
    found = many(4)
    for key in ("split", "cost", "pairs"):
        found[key] = None
    del found["run"]["alpha"]
    assert "won" in page_of(tmp_path, found).text


# --- one file, from the disk ------------------------------------------------------------


def test_the_page_has_no_outside_address_and_no_script(tmp_path, drawn):
    found = many(30)
    folder = folder_of(tmp_path, found)
    text = write_own(folder).read_text()
    assert not re.search(
        r"https?:|//[a-z]|@import|url\((?!#)|\son\w+=|javascript:", text
    )
    page = Read(text)
    (policy,) = [
        a["content"]
        for tag, a in page.tags
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy and policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not [a for _, a in page.tags if "style" in a]
    links = [str(a["href"]) for tag, a in page.tags if tag == "a"]
    ids = [str(a["id"]) for _, a in page.tags if "id" in a]
    assert links and {link.removeprefix("#") for link in links} <= set(ids)
    assert len(ids) == len(set(ids))
    uses = [str(a["href"]) for tag, a in page.tags if tag == "use"]
    assert {use.removeprefix("#") for use in uses} <= set(ids)
    assert (folder / "report.html").stat().st_mode & 0o077 == 0


def test_the_style_sheet_is_the_one_that_the_policy_allows(tmp_path):
    import base64
    import hashlib

    text = write_own(folder_of(tmp_path, many(2))).read_text()
    style = text.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src &#39;sha256-{digest}&#39;" in text


def test_the_page_can_be_heard(tmp_path, drawn):
    page = page_of(tmp_path, many(30))
    levels = [int(tag[1]) for tag in page.shape() if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    assert all("scope" in a for tag, a in page.tags if tag == "th")
    ids = {a.get("id") for _, a in page.tags}
    drawn = [a for tag, a in page.tags if tag == "svg"]
    assert len(drawn) > 5
    for one in drawn:
        assert one["role"] == "img"
        assert set(str(one["aria-labelledby"]).split()) <= ids
    assert page.shape().count("figure") == page.shape().count("figcaption")
    # Each picture's numbers are in a table of its figure.
    assert page.shape().count("table") >= len(drawn)


def luminance(colour: str) -> float:
    full = colour if len(colour) == 6 else "".join(c + c for c in colour)
    parts = [int(full[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    linear = [
        p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
    ]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_can_be_read_in_light_dark_and_print():
    """WCAG 2: 4.5 for text, on the page and on cards; so are the colours of pictures."""
    style = (Path(pictures.__file__).parent / "page.css").read_text()
    themes = re.findall(r":root\{([^}]*)\}", style)
    assert len(themes) == 3
    for theme in themes:
        known = dict(re.findall(r"--(\w+):#(\w+)", theme))
        for name in {*known} - {"page", "card", "grid"} | {"ink", "faint"}:
            for under in ("page", "card"):
                both = sorted(luminance(known[one]) + 0.05 for one in (name, under))
                assert both[1] / both[0] >= 4.5, (theme, name, under)


def test_the_same_results_give_the_same_bytes(tmp_path, drawn):
    folder = folder_of(tmp_path, many(20))
    one = write_own(folder).read_bytes()
    time.sleep(0.01)
    assert write_own(folder).read_bytes() == one


def test_a_report_of_200_users_takes_less_than_five_seconds(tmp_path, drawn):
    folder = folder_of(tmp_path, many(200))
    before = time.process_time()
    path = write_own(folder)
    assert time.process_time() - before < 5
    assert path.stat().st_size < 1_000_000


@pytest.mark.slow
def test_very_many_users_are_aggregated_and_the_page_says_so(tmp_path):
    small = write_own(folder_of(tmp_path, many(400))).stat().st_size
    found = many(400) | {"users": users_of(30_000)}
    folder = folder_of(tmp_path, found)
    path = write_own(folder)
    assert path.stat().st_size < 1.2 * small
    assert "of 30000" in path.read_text()


# --- what it says -----------------------------------------------------------------------


def test_who_gained_and_who_lost(tmp_path):
    found = many(30)
    found["users"]["u004"]["c-bpo"]["nll"] = 9.0
    page = page_of(tmp_path, found)
    assert "By c-bpo, 29 of 30 users gained over shared, 1 lost." in page.text
    order = [t for t in page.texts if re.fullmatch(r"u\d\d\d", t)]
    assert order[-1] == "u004"


def test_users_of_no_simulation_are_numbered(tmp_path):
    found = many(5, privacy=card(programme_g(), "r", "1", "abc"))
    text = page_of(tmp_path, found).text
    assert "u001" not in text and "user 2" in text


def test_rates_clamp_alpha_and_cost(tmp_path, drawn):
    found = many(12)
    found["run"] |= {
        "learning_rates": {"sft": 0.003},
        "clamp_rate": {"sft": 0.0, "c-bpo": 0.25},
        "overlap": {user: 0.1 + k / 100 for k, user in enumerate(found["users"])},
    }
    log = {"steps": 6.0, "loss": 0.75}
    state = {
        "trials": {"sft": {"0.001": [0, 2.5], "0.003": [1, 2.25]}},
        "outcomes": {
            "sft": {"u000": {"log": log}, "stranger": {"log": {"loss": 99.0}}}
        },
    }
    text = page_of(tmp_path, found, state=state).text
    assert "2.250   1   chosen" in re.sub(r" +", "   ", text)
    assert "25.0%" in text and "0.750" in text and "99.0" not in text
    assert "off by 0.100 on average" in text and "correlation of 1.00" in text
    assert "2.0" in text  # megabytes up


def test_ranks_are_those_of_scipy():
    from scipy.stats import rankdata

    from idiolect.server.report.run import _ranks

    values = [0.3, 0.1, 0.3, 0.2, 0.3, 0.1]
    assert _ranks(values) == [2 * rank - 1 for rank in rankdata(values)]


def test_learning_curves_are_means_over_users(tmp_path, drawn):
    folder = folder_of(tmp_path, many(3))
    for user, losses in {"u000": [4.0, 2.0], "u001": [2.0], "stranger": [99.0]}.items():
        place = folder / "curves" / "sft" / f"{user}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps({"user": user, "loss": losses}))
    page = Read(write_own(folder).read_text())
    text = re.sub(r"\s+", " ", page.text)
    assert "Learning curves: loss by step, mean over users" in text
    assert "sft 2 2 3.000 2.000 2.000" in text and "99" not in text


def test_bytes_and_memory_by_phase():
    events = [
        {"event": "phase", "phase": "hello", "all_mb": 1.0},
        {"event": "phase", "phase": "adapt", "all_mb": 50.0},
        {"event": "progress", "phase": "adapt", "bytes_up": 10, "bytes_down": 4},
        {"event": "progress", "phase": "adapt", "bytes_up": 30, "bytes_down": 5},
        {"event": "phase", "phase": "pool", "all_mb": 70.0},
        {"event": "progress", "phase": "pool", "bytes_up": 31, "bytes_down": 9},
        {"event": "memory", "server_mb": 5.0, "all_mb": 80.0},
    ]
    assert phases(events, {"bytes_up": 31}) == {
        "hello": [None, None, 50.0],
        "adapt": [30.0, 5.0, 70.0],
        "pool": [1.0, 4.0, 80.0],
    }
    assert phases(events, {"bytes_up": None})["adapt"] == [None, None, 70.0]


def test_both_epsilons_by_event_and_together(tmp_path, drawn):
    found = many(5, privacy=card(programme_g(), "r", "1", "abc"))
    text = re.sub(r"\s+", " ", page_of(tmp_path, found).text)
    assert "Epsilon 0.847 against anybody who sees the releases, 5.33 against" in text
    assert "adapt, 50 x" in text and "all noisy together 0.847 5.33" in text
    assert "not covered: a server that does not follow the protocol" in text


def test_what_left_without_noise_is_said(tmp_path):
    text = re.sub(r"\s+", " ", page_of(tmp_path, many(5)).text)
    assert "metrics, alpha exact, no noise" in text
    assert "history, own texts stays" in text and "votes on items not sent" in text


def test_configuration_and_command(tmp_path):
    text = re.sub(r"\s+", " ", page_of(tmp_path, many(5)).text)
    assert "2 of" in text and "keys differ from their defaults" in text
    assert "idiolect-server simulate -c users=7 -c history=8" in text


def test_the_command_gives_the_same_configuration():
    import shlex

    from idiolect.common.config import defaults, flatten, parse_word
    from idiolect.server.report.run import command

    for given in (
        {
            "preset": "real",
            "users": 5,
            "unlabeled.file": "a b'c",
            "evaluate.shift": True,
        },
        {"methods": "shared,sft", "personalise.learning-rates": "1e-3"},
    ):
        config = flatten(parse(given))
        words = shlex.split(command(config))
        again = (
            {"preset": words[words.index("--preset") + 1]}
            if "--preset" in words
            else {}
        )
        pairs = [words[k + 1].partition("=") for k, w in enumerate(words) if w == "-c"]
        again |= {key: parse_word(key, text) for key, _, text in pairs}
        assert flatten(parse(again)) == config
        assert len(again) < len(defaults()) / 4


# --- texts ------------------------------------------------------------------------------


def with_texts(tmp_path: Path) -> Path:
    folder = folder_of(tmp_path, many(5))
    for method in ("shared", "c-bpo"):
        for user in ("u000", "u001", "u002", "u003", "u004"):
            item = {
                "prompt": "Write.",
                "reference": f"own {user}",
                "output": f"{method}<b>",
            }
            place = folder / "texts" / method / f"{user}.json"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps({"user": user, "items": [item]}))
    return folder


def test_no_text_is_shown_unless_asked_for(tmp_path):
    folder = with_texts(tmp_path)
    assert "own u0" not in write_own(folder).read_text()


def test_texts_are_chosen_by_what_their_users_gained(tmp_path):
    folder = with_texts(tmp_path)
    found = json.loads((folder / "results.json").read_text())["users"]
    gain = {u: row["c-bpo"]["nll"] - row["shared"]["nll"] for u, row in found.items()}
    order = sorted(gain, key=gain.__getitem__)
    text = Read(write_report("one", str(folder.parent), texts=True).read_text()).text
    shown = re.findall(r"own (u\d+)", text)
    assert shown == [order[0], order[2], order[4]]
    assert "c-bpo<b>" in text and "Chosen by rule" in text


# --- studies ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["audit", "dislikes", "learning_rate", "wire"])
def test_a_study_gives_a_page(tmp_path, name, drawn):
    summary = json.loads(gzip.decompress((FINDINGS / f"{name}.json.gz").read_bytes()))
    path = write_report(str(FINDINGS / f"{name}.json.gz"), to=tmp_path / "s.html")
    page = Read(path.read_text())
    assert summary["answer"] in page.text and summary["title"] in page.text
    assert path.stat().st_size < 1_000_000
    if summary["claims"] and name != "audit":
        assert "confirmed" in page.text and "svg" in page.shape()


def test_a_study_is_found_by_its_name(tmp_path):
    folder = tmp_path / "studies" / "mine"
    folder.mkdir(parents=True)
    data = gzip.decompress((FINDINGS / "wire.json.gz").read_bytes())
    (folder / "summary.json").write_bytes(data)
    (tmp_path / "runs").mkdir()
    assert write_report("mine", str(tmp_path / "runs")) == folder / "report.html"
    # One that comes with the code is written beside the others, not into the docs.
    path = write_report("audit", str(tmp_path / "runs"))
    assert path == tmp_path / "studies" / "audit" / "report.html"


def test_what_is_neither_is_refused(tmp_path):
    with pytest.raises(IdiolectError, match="there is no run 'none'"):
        write_report("none", str(tmp_path))
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(IdiolectError, match="not the summary of a study"):
        write_report(str(tmp_path / "x.json"), str(tmp_path))


def test_without_matplotlib_there_are_tables(tmp_path):
    page = page_of(tmp_path, many(5))
    assert "svg" not in page.shape() and "matplotlib was not installed" in page.text
    assert "details" in page.shape() and "c-bpo - sft" in page.text


def test_results_are_read_as_show_reads_them(tmp_path):
    folder = folder_of(tmp_path, many(3))
    (folder / "results.json").write_text("{")
    with pytest.raises(IdiolectError, match="is damaged"):
        write_report("one", str(results.runs_folder(str(folder.parent))))
