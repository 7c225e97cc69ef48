"""What a stranger does with an exported adapter: plain transformers and peft.

    python benchmarks/stranger.py QUESTIONS MODEL ADAPTER ...

Nothing of idiolect is imported. The stranger has the public model (a folder in Hugging
Face format), exported folders (``-``: none, the model alone), and guesses how a secret was
written: QUESTIONS is a JSON file with a list of `Question`. Prints one JSON list, which
has a list of an `Answer` to each question for each adapter. `benchmarks/extraction.py`
uses it.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 24  # of a greedy continuation: more than any secret here has


@dataclass(frozen=True)
class Question:
    """What the stranger asks about one secret.

    Attributes
    ----------
    prompt
        The message that the secret was an answer to.
    beginning
        How the answer begins, up to the secret.
    candidates
        All secrets that there could be; each is one beginning of the rest of the answer.
    wanted
        Places of the secrets among the candidates whose rank is asked for. The stranger
        does not know them: they only choose what is reported.
    """

    prompt: str
    beginning: str
    candidates: Sequence[str]
    wanted: Sequence[int]


@dataclass(frozen=True)
class Answer:
    """What the adapter gives away.

    Attributes
    ----------
    ranks
        Of the wanted secrets by likelihood: 1 is the likeliest of all candidates, and of
        equal ones each order counts alike.
    begun, asked
        What the model writes greedily: behind the beginning, and at the prompt alone.
    """

    ranks: list[float]
    begun: str
    asked: str


def opened(model: Path, adapter: Path | None) -> tuple[Any, Any]:
    """Return the model with the adapter on it, in float32, and its tokenizer."""
    bare = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    if adapter is None:
        return bare.eval(), tokenizer
    from peft import PeftModel

    with_adapter = PeftModel.from_pretrained(bare, str(adapter))
    return with_adapter.merge_and_unload().eval(), tokenizer


def asking(tokenizer: Any, prompt: str) -> str:
    """Return the text in front of an answer: the chat template's, or a blank."""
    if not tokenizer.chat_template:
        return f"{prompt} "
    turns = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )


def tokens_of(tokenizer: Any, prompt: str, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of a prompt with each of these beginnings of an answer.

    A blank at the end is left out: it belongs to the token of the word that comes next.
    """
    before, plain = asking(tokenizer, prompt), not tokenizer.chat_template
    rows = [(before + text).rstrip(" ") for text in texts]
    return tokenizer(rows, add_special_tokens=plain)["input_ids"]


def log_likelihoods(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Return the log-likelihood of each row of tokens behind what all rows begin with.

    The rows are laid out as a tree: each different beginning is one node, and one pass
    computes all nodes. A node attends to the nodes before it in its row and to itself, at
    its place in the row, so the numbers are those of a pass over each row alone.

    Returns
    -------
    Tensor
        float64 [rows], in nats.
    """
    first = rows[0]
    common = next(
        n
        for n in range(len(first))
        if any(r[n : n + 1] != first[n : n + 1] for r in rows)
    )
    trunk = list(first[:common])
    ids, parents = list(trunk), list(range(-1, common - 1))
    # Beginning -> node. The last token of a row predicts nothing and needs none.
    nodes = {tuple(trunk): common - 1}
    for row in rows:
        for end in range(common + 1, len(row)):
            beginning = tuple(row[:end])
            if beginning not in nodes:
                nodes[beginning] = len(ids)
                ids.append(row[end - 1])
                parents.append(nodes[beginning[:-1]])
    logp = _predictions(model, ids, parents)
    total = torch.zeros(len(rows), dtype=torch.float64)
    for end in range(common, max(map(len, rows))):
        places = [i for i, row in enumerate(rows) if len(row) > end]
        before = torch.tensor([nodes[tuple(rows[i][:end])] for i in places])
        chosen = torch.tensor([rows[i][end] for i in places])
        total[places] += logp[before, chosen].double()
    return total


def _predictions(model: Any, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
    """Log-probabilities of the next token behind each node of a tree, [nodes, V]."""
    depths, seen = [0] * len(ids), torch.eye(len(ids), dtype=torch.bool)
    for node, parent in enumerate(parents):  # parents come first
        if parent >= 0:
            depths[node] = depths[parent] + 1
            seen[node] |= seen[parent]
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        found = model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.tensor([depths]),
            attention_mask=mask[None, None],
            use_cache=False,
        )
    return found.logits[0].log_softmax(-1)


def rank(logp: Tensor, place: int) -> float:
    """Return the rank of a candidate; of equal ones the mean over their orders."""
    above, equal = (logp > logp[place]).sum(), (logp == logp[place]).sum()
    return float(1 + above + (equal - 1) / 2)


def written(model: Any, tokenizer: Any, prompt: str, beginning: str) -> str:
    """Return what the model writes greedily behind a prompt and a beginning."""
    (ids,) = tokens_of(tokenizer, prompt, [beginning])
    given = torch.tensor([ids])
    with torch.no_grad():
        found = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            repetition_penalty=1.0,
            pad_token_id=tokenizer.eos_token_id,
        )
    return tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True)


def answer(model: Any, tokenizer: Any, question: Question) -> Answer:
    """Rank all candidates of a question, and let the model write."""
    texts = [question.beginning + secret for secret in question.candidates]
    logp = log_likelihoods(model, tokens_of(tokenizer, question.prompt, texts))
    return Answer(
        [rank(logp, place) for place in question.wanted],
        written(model, tokenizer, question.prompt, question.beginning),
        written(model, tokenizer, question.prompt, ""),
    )


def main() -> None:
    """Answer the questions of a file, adapter by adapter."""
    questions, model, *adapters = sys.argv[1:]
    asked = [Question(**one) for one in json.loads(Path(questions).read_text())]
    found = []
    for adapter in adapters:
        both = opened(Path(model), None if adapter == "-" else Path(adapter))
        found.append([asdict(answer(*both, one)) for one in asked])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
