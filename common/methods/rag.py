"""RAG: the user's own items in the prompt, without training.

Items in, items with longer prompts out. What is added stands before the prompt, which is
never shortened because of it: an addition that does not fit is left out. Only the
user's own history is read.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import cast

import numpy as np

from ..config import Config
from ..data.load import task_of
from ..data.types import Item, User
from ..engine.backbone import Backbone
from ..engine.fitting import output_budget
from ..engine.reference import Reference
from ..errors import IdiolectError


def prompted(reference: Reference, user: User, config: Config) -> User:
    """The user with the prompts that this method asks."""
    budget = output_budget(reference.backbone, task_of(config.task))
    return with_history(reference.backbone, user, config.evaluate.retrieved, budget)


def with_history(
    backbone: Backbone,
    user: User,
    retrieved: int,
    new_tokens: int,
    profile: str = "",
) -> User:
    """Let the prompts of a user's held-out items begin with the user's own items.

    The k most similar by BM25, as LaMP does it (Salemi et al. 2024), each as its prompt
    with what the user wrote, the most similar next to the question. A profile stands
    before them (PAG, Richardson et al. 2023).

    Parameters
    ----------
    backbone
        Its tokenizer says what fits.
    user
        Whose history is searched, and whose held-out items, with their rivals, are asked.
    retrieved
        k.
    new_tokens
        Budget of the output.
    profile
        Text about the user, or none.

    Returns
    -------
    User
        With longer prompts. A rival is asked after the same items as what it rivals, and
        at the very same prompt where it was at the same prompt before.
    """
    head = f"{profile}\n" if profile else ""
    held_out: list[Item] = []
    orders = ranked(user.held_out, user.history)
    for item, order in zip(user.held_out, orders, strict=True):
        texts = [example(user.history[i]) for i in order[:retrieved]]
        lengths = [(one, len(backbone.completion(one))) for one in (item, *item.rivals)]
        alike = [length for one, length in lengths if one.prompt == item.prompt]
        budget = max(new_tokens, *alike)
        asked, *rivals = (
            fitted(backbone, one, head, texts, max(budget, length))
            for one, length in lengths
        )
        held_out.append(replace(asked, rivals=tuple(rivals)))
    return replace(user, held_out=tuple(held_out))


def fitted(
    backbone: Backbone, item: Item, head: str, texts: Sequence[str], budget: int
) -> Item:
    """Put texts before an item's prompt, as far as they fit beside `budget` tokens.

    The first of `texts` matters most and comes last. `head` matters more than any of them
    and comes first. An item whose prompt fills the context alone stays as it is.
    """
    kept = ""
    if not _fits(backbone, _after(item, head), budget):
        head = ""
    for text in texts:
        if _fits(backbone, _after(item, head + text + kept), budget):
            kept = text + kept
    return _after(item, head + kept)


def example(item: Item) -> str:
    """One item as an example: its prompt, and what the user wrote."""
    return f"{item.prompt.text} {item.target}\n"


def ranked(questions: Sequence[Item], history: Sequence[Item]) -> list[list[int]]:
    """Order a history by likeness to each question: places in it, the best first.

    BM25 (Robertson and Zaragoza 2009) over the words of the prompts' inputs; common words
    need no list, their inverse document frequency is low. Among equals the newest first.
    """
    # Here, because only these methods need it.
    from bm25s import BM25, tokenize
    from bm25s.tokenization import Tokenized

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells of every index

    def words(items: Sequence[Item]) -> list[list[str]]:
        texts = [item.prompt.input for item in items]
        found = tokenize(texts, stopwords=[], return_ids=False, show_progress=False)
        return cast(list[list[str]], found)

    corpus, index = words(history), BM25()
    numbers = {w: i for i, w in enumerate(dict.fromkeys(chain(*corpus)))}
    if numbers:
        ids = [[numbers[word] for word in text] for text in corpus]
        index.index(Tokenized(ids, numbers), False, show_progress=False)
    places: list[list[int]] = []
    for query in words(questions):
        known = [word for word in query if word in numbers]
        scores = index.get_scores(known) if known else np.zeros(len(history))
        newest_first = reversed(range(len(history)))
        places.append(sorted(newest_first, key=lambda i, s=scores: -s[i]))
    return places


def _after(item: Item, text: str) -> Item:
    return replace(item, prompt=replace(item.prompt, before=text + item.prompt.before))


def _fits(backbone: Backbone, item: Item, budget: int) -> bool:
    room = backbone.context - budget
    try:
        return not backbone.encode_prompt(item.prompt, room, item.id)[1]
    except IdiolectError:  # not even with the whole input cut away
        return False
