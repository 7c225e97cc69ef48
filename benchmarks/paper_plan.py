"""What study `paper` would take on GPUs that are not here, without its weights and data.

    python benchmarks/paper_plan.py [--lengths FILE.toml] [--gpu NAME[:COUNT] ...]

The model is a config.json of the shape of Mistral-7B-Instruct-v0.3, without a weight. The
texts are words drawn at random, as long as `paper_lengths.toml` says (or FILE). A stand-in
for the tokenizer makes one token of each word, and a text gets as many words as the
real tokenizer would make tokens. What is counted are the rows, batches and layouts of the
study as it is declared; hours follow from data sheets (`server/forecast/gpus.py`).

Without options the plans for one GPU of 80 GiB and for four of 24 GiB are written into
``benchmarks/results/paper_plan.json`` and ``docs/studies.md``. Whoever has data and weights
asks `idiolect-server study … --plan --gpu NAME` instead, which counts those.
"""

import argparse
import math
import os
import random
import re
import tempfile
import tomllib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from report import between
from stand_in import MODEL, STUDY, TASKS, Fields, write
from transformers import AutoTokenizer, MistralConfig

from idiolect.common.data.lamp.forms import FORMS
from idiolect.common.data.types import STAND_IN
from idiolect.common.engine.model_folder import TINY
from idiolect.common.text import duration
from idiolect.server.forecast.estimate import PHASES, Forecast, elsewhere
from idiolect.server.run.results import write_json
from idiolect.server.study.ahead import forecast
from idiolect.server.study.declaration import cells, read_study, with_keys

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = Path(__file__).with_name("paper_lengths.toml")
KEPT = ROOT / "benchmarks/results/paper_plan.json"
PAGE = ROOT / "docs/studies.md"
START, END = "<!-- plan of the paper -->\n", "<!-- end of the plan -->\n"
GPUS = ("a100-80gb:1", "rtx3090-24gb:4")
STUDIED = 100  # users of the study; as many development users
USERS = 8  # of these, as many of both as are counted: they stand for all
MOST = 110  # items of a profile: the study reads the newest 100
SENTENCE = 15  # tokens, with the stop
SUMMARY = 5  # words of a review's summary
Lengths = Mapping[str, Mapping[str, Any]]


def shape() -> MistralConfig:
    """Shape of Mistral-7B-Instruct-v0.3, as its published config.json has it."""
    return MistralConfig(
        vocab_size=32768,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        sliding_window=None,
        dtype="bfloat16",
    )


def write_model(folder: Path) -> list[str]:
    """Write config.json and a tokenizer, and no weights; return words of one token each."""
    shape().save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(TINY)
    known = tokenizer.get_vocab()
    words = sorted(w[1:] for w in known if re.fullmatch("Ġ[a-z]{5,}", w))
    # The words of the questions too: the real tokenizer has hardly more tokens than words.
    asked = {
        word
        for form in FORMS.values()
        for text in (form.question, form.template, form.stop, form.cue)
        for word in re.findall("[A-Za-z]{3,}", text)
    }
    tokenizer.add_tokens([f" {word}" for word in sorted(asked)])
    tokenizer.save_pretrained(folder)
    return [w for w in words if w not in asked]


def drawn(mean: float, deviation: float, rng: random.Random) -> int:
    """Draw a length, 1 or more, from a lognormal distribution with these moments."""
    spread = math.log(1 + (deviation / mean) ** 2)
    return max(1, round(rng.lognormvariate(math.log(mean) - spread / 2, spread**0.5)))


def person(
    task: str, lengths: Lengths, words: list[str], rng: random.Random
) -> list[Fields]:
    """Draw the items of one profile, and the one that is asked for."""
    form, own, tokens = FORMS[task], lengths[task], lengths["tokens"]
    title = form.answer if task.startswith("LaMP") else "title"

    def text(name: str, key: str) -> str:
        rate = tokens["title" if name == title else "text"]
        mean, deviation = (rate * one for one in own[key])
        count = drawn(mean, deviation, rng)
        found = rng.choices(words, k=count - count // SENTENCE)  # a stop is a token too
        found[SENTENCE - 2 :: SENTENCE - 1] = (
            f"{word}." for word in found[SENTENCE - 2 :: SENTENCE - 1]
        )
        return " ".join(found)

    items: list[Fields] = []
    mean, deviation = own["history"]
    for number in range(1 + min(MOST, drawn(mean, deviation, rng))):
        when = date(2001, 1, 1) + timedelta(number)
        item = {form.source: text(form.source, "input"), form.date: when.isoformat()}
        item |= {form.answer: text(form.answer, "output")}
        if task == "LongLaMP-review":
            item |= {
                "overall": "5.0",
                "summary": " ".join(rng.choices(words, k=SUMMARY)),
            }
        if task in ("LongLaMP-review", "LongLaMP-topic"):
            del item[form.date]  # as published
        items.append(item)
    return items


def write_data(folder: Path, lengths: Lengths, words: list[str], users: int) -> None:
    """Write the five data sets of the study, of texts that say nothing."""
    for task in TASKS:
        rng = random.Random(task)
        names = (f"{STAND_IN}{number:03d}" for number in range(users))
        people = [(name, person(task, lengths, words, rng)) for name in names]
        write(people, task, folder)


def plan(place: Path, gpu: str, number: int) -> tuple[Forecast, dict[str, float]]:
    """Forecast the study from USERS users; also the hours of each of its data sets."""
    study = with_keys(
        read_study(STUDY), [f"users={USERS}", f"development-users={USERS}"]
    )
    ahead, seconds = forecast(study, place, gpu=gpu, processes=number)
    hours: dict[str, float] = {}
    for cell, took in zip(cells(study), seconds, strict=True):
        name = str(cell["dataset"])
        hours[name] = hours.get(name, 0.0) + STUDIED / USERS * took / 3600
    return scaled(ahead, STUDIED / USERS), hours


def scaled(ahead: Forecast, factor: float) -> Forecast:
    """Return the forecast for so many times the users; memory does not depend on them."""
    return replace(
        ahead,
        seconds=factor * ahead.seconds,
        longest=factor * ahead.longest,
        tokens=ahead.tokens.times(factor),
        shares={name: factor * took for name, took in ahead.shares.items()},
    )


def entry(ahead: Forecast, hours: Mapping[str, float], gpu: str, number: int) -> Any:
    """Return what the page says of one plan."""
    phases: dict[str, float] = {}
    for (phase, _, _), seconds in ahead.shares.items():
        phases[PHASES[phase]] = phases.get(PHASES[phase], 0.0) + seconds / 3600
    tokens = ahead.tokens
    return {
        "gpu": gpu,
        "number": number,
        "hours": ahead.seconds / 3600,
        "longest": ahead.longest / 3600,
        "gib": ahead.memory / 1024,
        "weights": ahead.backbone / 1024,
        "of": ahead.free / 1024,
        "trained": tokens.adapted + tokens.trained,
        "read": tokens.scored + tokens.prompted,
        "written": tokens.written,
        "datasets": dict(hours),
        "phases": phases,
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the part of the page, from what was kept."""
    plans, lengths = found["plans"], found["lengths"]
    heads = [f"{one['number']} × {one['gpu']}" for one in plans]

    def row(name: str, *cells: str) -> str:
        return f"| {' | '.join((name, *cells))} |"

    def each(name: str, write: Any) -> str:
        return row(name, *(write(one) for one in plans))

    def million(key: str) -> Any:
        return lambda one: f"{one[key] / 1e6:,.0f} million"

    made = [row("", *heads), row(*["---"] * (1 + len(plans)))]
    made += [
        each("tokens trained (forward and backward)", million("trained")),
        each("tokens read", million("read")),
        each("tokens written", million("written")),
        each("GPU hours", lambda one: f"{one['hours']:,.0f}"),
        each("until the last GPU is done", lambda one: duration(3600 * one["longest"])),
        each(
            "memory of a GPU, GiB", lambda one: f"{one['gib']:.1f} of {one['of']:.0f}"
        ),
        each("of that, weights", lambda one: f"{one['weights']:.1f}"),
        each("fits", lambda one: "yes" if one["gib"] <= one["of"] else "no"),
    ]
    for part, title in (("datasets", "GPU hours of"), ("phases", "GPU hours,")):
        for name in plans[0][part]:
            made.append(
                each(
                    f"{title} {name}",
                    lambda one, part=part, name=name: (
                        f"{one[part].get(name, 0.0):,.1f}"
                    ),
                )
            )
    made += [
        "",
        row("task", "input, words", "output, words", "profile, items", "source"),
    ]
    made.append(row(*["---"] * 5))
    for task in TASKS:
        own = lengths[task]
        cells = [
            f"{own[k][0]:g} ± {own[k][1]:g}" for k in ("input", "output", "history")
        ]
        made.append(row(task, *cells, own["source"]))
    rates = lengths["tokens"]
    made += [
        "",
        (
            f"A word is {rates['text']} tokens, in titles {rates['title']}. Lengths are "
            f"drawn from lognormal distributions, for {found['users']} users, who stand "
            f"for the study's {2 * STUDIED}."
        ),
    ]
    return made


def written(page: str, found: Mapping[str, Any]) -> str:
    """Return the page with what was found between its markers."""
    return between(page, START, END, "\n".join(lines(found)) + "\n")


def main() -> None:
    """Write model and texts, and the plans."""
    parser = argparse.ArgumentParser(description="Plan of study `paper`.")
    parser.add_argument("--lengths", type=Path, default=LENGTHS, metavar="FILE.toml")
    parser.add_argument("--gpu", nargs="+", default=[], metavar="NAME[:COUNT]")
    options = parser.parse_args()
    lengths: Lengths = tomllib.loads(options.lengths.read_text())
    plans: list[Any] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        words = write_model(place / "models" / MODEL)
        write_data(place / "data", lengths, words, 2 * USERS)
        os.environ["IDIOLECT_DATA"] = str(place / "data")
        os.environ["IDIOLECT_MODELS"] = str(place / "models")
        split = [one.partition(":") for one in options.gpu or GPUS]
        asked = [(gpu, int(number or 1)) for gpu, _, number in split]
        with ThreadPoolExecutor() as threads:  # each counts in a process of its own
            made = threads.map(lambda one: plan(place / "out", *one), asked)
            for (gpu, number), (ahead, hours) in zip(asked, made, strict=True):
                print(elsewhere(ahead, gpu, number), end="\n\n", flush=True)
                plans.append(entry(ahead, hours, gpu, number))
    found = {"users": 2 * USERS, "lengths": lengths, "plans": plans}
    if options.gpu or options.lengths != LENGTHS:
        print("\n".join(lines(found)))
        return
    write_json(KEPT, found)
    PAGE.write_text(written(PAGE.read_text(), found))
    print(f"written into {KEPT} and {PAGE}")


if __name__ == "__main__":
    main()
