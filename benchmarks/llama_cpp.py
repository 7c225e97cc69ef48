"""Exports in a real llama.cpp: whether it chooses the tokens that idiolect chooses.

    python benchmarks/llama_cpp.py --python PYTHON [--page]

PYTHON is one that has ``xllamacpp`` (``pip install xllamacpp`` in an environment of its
own). One owner of `benchmarks/owners` trains an adapter on top of another's, which stands
for a shared adapter; both are exported. Over 20 texts of the owner that were not learnt,
both programs are asked for the likeliest next token at each place of the answer, given the
owner's own words before it. Then both write answers of their own.

Writes benchmarks/results/llama_cpp.json and docs/llama-cpp.md; some 10 minutes of one core.
`--page` writes only the page.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from owners import rows_of
from report import RESULTS, ROOT, save

import idiolect
from idiolect.common.data.types import Item, Prompt
from idiolect.common.engine.adapters import Lora, attached
from idiolect.common.engine.backbone import Backbone
from idiolect.common.engine.exports import (
    ADAPTER,
    BASE,
    MODEL,
    export_gguf,
    export_merged,
    export_peft,
)
from idiolect.common.engine.model_folder import locate
from idiolect.common.engine.scoring import generate
from idiolect.common.gguf.write import write_model

PAGE, NAME = ROOT / "docs" / "llama-cpp.md", "llama_cpp"
RUNNER = ROOT / "benchmarks" / "llama_cpp_runner.py"
BACKBONE, METHOD = "smollm2", "sft"
OWNER, OTHER = "chat-mia", "email-warm"
LEARNT, TEXTS, WRITTEN, TOKENS = 12, 20, 5, 40
GOAL = 0.95
CASES = (
    ("the model alone", "F16"),
    ("own adapter", "F16"),
    ("shared and own adapter", "F16"),
    ("shared and own adapter", "Q4_1, as exported"),
    ("shared and own adapter", "F16, merged"),
)


# --- the measurement -------------------------------------------------------------------


def pairs(owner: str, rows: slice) -> list[tuple[str, str]]:
    """Return some pairs of an owner."""
    return [(row["prompt"], row["target"]) for row in rows_of(owner)[rows]]


def encoded(backbone: Backbone, texts: Sequence[tuple[str, str]]) -> list[list[Any]]:
    """Return token ids of each pair, and where its answer begins."""
    items = [Item(f"{n}", Prompt("", a), b) for n, (a, b) in enumerate(texts)]
    found = [backbone.encode(item) for item in items]
    return [[list(one.ids), one.prompt_length] for one in found]


def ours(
    backbone: Backbone, policy: Sequence[Lora], rows: Sequence[Any]
) -> list[list[int]]:
    """Return the likeliest token behind each place from an answer's begin on."""
    found = []
    with torch.no_grad(), attached(backbone, *policy):
        for ids, start in rows:
            logits = backbone.model(input_ids=torch.tensor([ids])).logits[0]
            found.append(logits[start - 1 : -1].argmax(-1).tolist())
    return found


def peft_difference(
    backbone: Backbone, policy: Sequence[Lora], folder: Path, ids: Sequence[int]
) -> float:
    """Return the largest difference of a logit to plain peft's, in float32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    bare = AutoModelForCausalLM.from_pretrained(locate(BACKBONE), dtype=torch.float32)
    rows = torch.tensor([list(ids)])
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(bare, str(folder))(rows).logits
        with attached(backbone, *policy):
            found = backbone.model(input_ids=rows).logits
    return float((found - theirs).abs().max())


def measure(python: str) -> None:
    """Train, export, and compare."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        theirs = idiolect.load(BACKBONE, max_length=256)
        other = theirs.personalise(pairs(OTHER, slice(LEARNT)), method=METHOD)
        other.save_pretrained(folder / "other")
        model = idiolect.load(BACKBONE, folder / "other", max_length=256)
        mine = model.personalise(pairs(OWNER, slice(LEARNT)), method=METHOD)
        backbone, shared, own = (
            model.reference.backbone,
            model.reference.adapter,
            mine.own,
        )
        assert own is not None
        nothing = Lora(shared.a, {n: 0 * b for n, b in shared.b.items()}, 1.0)
        whole = export_peft, export_gguf
        for number, below in enumerate((nothing, shared)):
            for export in whole:
                export(folder / f"{export.__name__}{number}", backbone, below, own)
        off, _ = export_merged(folder / "merged", backbone, shared, own)
        write_model(folder / "f16.gguf", locate(BACKBONE), backbone.tokenizer)
        files = {
            "F16": folder / "f16.gguf",
            "Q4_1, as exported": folder / "export_gguf1" / BASE,
            "F16, merged": folder / "merged" / MODEL,
        }
        adapters = {
            "own adapter": folder / "export_gguf0" / ADAPTER,
            "shared and own adapter": folder / "export_gguf1" / ADAPTER,
        }
        policies: dict[str, list[Lora]] = {
            "the model alone": [],
            "own adapter": [own],
            "shared and own adapter": [shared, own],
        }
        texts = pairs(OWNER, slice(-TEXTS, None))
        rows = encoded(backbone, texts)
        prompts = [ids[:start] for ids, start in rows[:WRITTEN]]
        jobs = [
            {
                "model": str(files[kind]),
                "adapter": str(adapters[who])
                if who in adapters and "merged" not in kind
                else None,
                "rows": rows,
                "prompts": prompts,
                "tokens": TOKENS,
            }
            for who, kind in CASES
        ]
        found = ran(python, folder / "jobs.json", jobs)
        both = policies["shared and own adapter"]
        cells = [
            {
                "who": who,
                "file": kind,
                "ours": ours(backbone, policies[who], rows),
                "theirs": job["likeliest"],
                "we write": generate(backbone, policies[who], prompts, TOKENS),
                "they write": job["written"],
            }
            for (who, kind), job in zip(CASES, found["jobs"], strict=True)
        ]
        save(
            NAME,
            {
                "build": found["build"],
                "cells": cells,
                "prompts": [text for text, _ in texts[:WRITTEN]],
                "peft": peft_difference(
                    backbone, both, folder / "export_peft1", rows[0][0]
                ),
                "merged": off,
            },
        )


def ran(python: str, file: Path, jobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what llama.cpp makes of the jobs."""
    file.write_text(json.dumps(jobs))
    done = subprocess.run(
        [python, str(RUNNER), str(file)], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{RUNNER.name} failed:\n{(done.stderr + done.stdout)[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- the page --------------------------------------------------------------------------

WHAT = """# Exports in llama.cpp

This page is written by `benchmarks/llama_cpp.py`. It says whether a real llama.cpp computes
with an exported adapter what idiolect computes with it.

`{backbone}` learnt {learnt} messages of one owner by `{method}`, on top of an adapter of
another owner, which stands for a shared adapter. The exports (`--format gguf` and `merged`)
were loaded by llama.cpp ({build}) on a CPU. Over {texts} messages that
were not learnt, both programs say which token is likeliest at each place of the answer,
given the owner's own words before it. idiolect computes in float32. llama.cpp rounds what
goes into a product to 16 bits, or to 8 bits where the weights are quantised, so near ties
can fall the other way. The goal is {goal:.0%} of the places.

"""
TAIL = """
*Base*: `F16` is the whole model written by `common/gguf/write.py`; `Q4_1` is the file that
the model came in, which `--format gguf` puts beside the adapter; `merged` has the adapters
in its weights, and none is loaded. *Without the adapter*: how many of llama.cpp's tokens
are also those of idiolect without any adapter: what a lost adapter would give.

The PEFT export in plain peft, in float32, at one message: the largest difference of a logit
is {peft:.1g}. The merged folder, loaded again: {merged:.1g}.

## Written freely

The likeliest token each time, at most {tokens} tokens, at {written} prompts of the owner
that were not learnt. {same} of {all} texts are equal, character by character.

"""


def share(
    one: Sequence[Sequence[Any]], other: Sequence[Sequence[Any]]
) -> tuple[int, int]:
    """Return how many tokens of two lists of rows are equal, and how many there are."""
    same = [
        a == b
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    return sum(same), len(same)


def table(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Return how often both programs choose the same token."""
    yield "| adapter | base | places | same token | without the adapter |"
    yield "| --- | --- | --- | --- | --- |"
    for cell in cells:
        same, places = share(cell["ours"], cell["theirs"])
        alone, _ = share(cells[0]["ours"], cell["theirs"])
        yield (
            f"| {cell['who']} | {cell['file']} | {places} | {same / places:.1%} | "
            f"{alone / places:.1%} |"
        )


def side_by_side(report: dict[str, Any]) -> Iterator[str]:
    """Return the texts that both wrote."""
    for cell in report["cells"]:
        yield f"### {cell['who'].capitalize()}, {cell['file']}"
        yield ""
        yield "| prompt | idiolect | llama.cpp |"
        yield "| --- | --- | --- |"
        rows = report["prompts"], cell["we write"], cell["they write"]
        for row in zip(*rows, strict=True):
            yield "| " + " | ".join(map(shown, row)) + " |"
        yield ""


def shown(text: str) -> str:
    """Return a text for a cell of a table."""
    plain = " ".join(text.split()).replace("|", "\\|")
    return plain.replace("<", "&lt;") or "(nothing)"


def page(report: dict[str, Any]) -> str:
    """Return docs/llama-cpp.md."""
    cells, origin = report["cells"], report["origin"]
    head = WHAT.format(
        backbone=BACKBONE,
        learnt=LEARNT,
        method=METHOD,
        build=report["build"],
        texts=TEXTS,
        goal=GOAL,
    )
    texts = [
        (a.strip(), b.strip())
        for cell in cells
        for a, b in zip(cell["we write"], cell["they write"], strict=True)
    ]
    reached = [share(cell["ours"], cell["theirs"]) for cell in cells]
    least = min(same / places for same, places in reached)
    found = "reached" if least >= GOAL else "not reached"
    tail = TAIL.format(
        peft=report["peft"],
        merged=report["merged"],
        tokens=TOKENS,
        written=WRITTEN,
        same=sum(a == b for a, b in texts),
        all=len(texts),
    )
    at = (
        f"\nThe goal is {found}; the lowest share is {least:.1%}. Measured at "
        f"{origin['commit']}, {origin['day']}.\n"
    )
    return (
        head
        + "\n".join(table(cells))
        + "\n"
        + at
        + tail
        + "\n".join(side_by_side(report))
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, unless only the page is wanted, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", help="a Python that has xllamacpp")
    parser.add_argument("--page", action="store_true", help="only the page")
    given = parser.parse_args(arguments)
    if not given.page:
        if not given.python:
            parser.error("--python says which Python has xllamacpp")
        measure(given.python)
    PAGE.write_text(page(json.loads((RESULTS / f"{NAME}.json").read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
