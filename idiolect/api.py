"""The library: load a model, personalise it on pairs of your own, look, and save.

A thin layer over `common`. What it trains has the numbers of `idiolect personalize` on a
device and of a run, given the same texts, settings and names of users.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from .common.config import UNTRAINED, Scalar, parse
from .common.config.keys import MOST_STRENGTH
from .common.data.types import Item, Prompt, User
from .common.engine.adapters import (
    Lora,
    attached,
    import_peft,
)
from .common.engine.exports import REVEALS, export_peft
from .common.engine.rates import rates_for
from .common.engine.reference import Reference, load_reference
from .common.engine.scoring import generate, score_users
from .common.errors import IdiolectError, refuse_if
from .common.methods.evaluation import held_out_nll
from .common.methods.personalise import Personal, personalise
from .common.unlabeled.sets import Unlabeled, UnlabeledSet

Pair = tuple[str, str] | Mapping[str, Any]
"""A prompt and the text that follows it.

A tuple, or a mapping with ``prompt`` and ``completion`` as in TRL. There ``label`` may be
False: the user turned this text down. C-BPO learns to avoid it, other methods leave it out.
"""

ME = "owner"  # what `idiolect personalize` calls the user of a device: seeds depend on it


def load(
    name: str | Path = "tiny",
    shared: str | Path | None = None,
    *,
    dtype: str = "float32",
    device: str = "auto",
    max_length: int = 512,
    seed: int = 0,
) -> "Model":
    """Load a frozen model that can be personalised.

    Parameters
    ----------
    name
        ``tiny`` (built in), ``smollm2`` (docs/models.md), a folder in Hugging Face format,
        a GGUF file, which is converted once, or a model id.
    shared
        Folder of a PEFT LoRA adapter that every user starts from; None: none.
    dtype, device
        ``float32``, ``bfloat16`` or ``float16``; ``cpu``, ``cuda``, or ``auto``: a GPU
        where there is one.
    max_length
        Longest sequence in tokens, prompt and text together.
    seed
        Of the adapters' first values, of draws and of the order of batches.

    Raises
    ------
    IdiolectError
        The model or the adapter cannot be read, or they do not belong together.
    """
    settings: dict[str, Scalar] = {
        "task": "text",
        "backbone": str(name),
        "engine.dtype": dtype,
        "engine.device": device,
        "engine.max-length": max_length,
        "seed": seed,
    }
    reference = load_reference(parse(settings))
    if shared is not None:
        read, device_of = (
            import_peft(Path(shared).expanduser()),
            reference.backbone.device,
        )
        a, b = (
            {n: t.to(device_of) for n, t in part.items()} for part in (read.a, read.b)
        )
        lora = Lora(a, b, read.scaling)
        with attached(reference.backbone, lora):  # refuses one of another model
            reference = reference.with_shared(lora)
    return Model(reference, settings)


class Policy:
    """A model that writes and scores: the backbone with the adapters on it.

    Attributes
    ----------
    reference
        The frozen backbone with the shared adapter.
    own
        The user's adapter; None where there is none.
    """

    def __init__(self, reference: Reference, own: Lora | None = None) -> None:
        self.reference, self.own = reference, own

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        top_p: float | None = None,
        repetition: float = 1.0,
    ) -> str:
        """Continue a prompt: greedily, or sampled from the nucleus `top_p`.

        Samples are drawn from torch's global generator (``torch.manual_seed``). Logits of
        tokens that the output already has are divided by `repetition` (multiplied where
        negative): 1.1, as `idiolect generate` has it, keeps small models from loops.
        """
        backbone = self.reference.backbone
        refuse_if(
            not 0 < max_new_tokens < backbone.context,
            f"{max_new_tokens} new tokens do not fit into a context of "
            f"{backbone.context}: ask for fewer, or load with a larger max_length.",
        )
        budget = backbone.context - max_new_tokens
        ids, _ = backbone.encode_prompt(Prompt("", prompt), budget, "the prompt")
        adapters = [self.reference.shared, self.own]
        (text,) = generate(
            *(backbone, adapters, [ids], max_new_tokens, top_p), repetition=repetition
        )
        return text

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return log p(text | prompt) of each pair: the sum over its tokens, in nats."""
        backbone = self.reference.backbone
        encoded = [backbone.encode(item) for item, _ in _items(ME, pairs)]
        return score_users(backbone, [self.reference.shared, self.own], [encoded])[0]

    def nll(self, pairs: Sequence[Pair]) -> float:
        """Return the mean negative log-likelihood per token, in nats; lower is better."""
        user = User(ME, (), tuple(item for item, _ in _items(ME, pairs)))
        return held_out_nll(self.reference, [self.own], [user], "")[0]


class Model(Policy):
    """A frozen model for everybody: what `load` returns."""

    def __init__(self, reference: Reference, settings: Mapping[str, Scalar]) -> None:
        super().__init__(reference)
        self.settings = settings

    def personalise(
        self,
        pairs: Sequence[Pair],
        against: Sequence[Pair] | None = None,
        method: str = "c-bpo",
        *,
        epochs: int = 3,
        learning_rate: float | None = None,
        config: Mapping[str, Scalar] | None = None,
    ) -> "PersonalModel":
        """Train the adapter of one user; the arguments are those of `personalise_all`."""
        return self.personalise_all(
            {ME: pairs},
            against,
            method,
            epochs=epochs,
            learning_rate=learning_rate,
            config=config,
        )[ME]

    def personalise_all(
        self,
        people: Mapping[str, Sequence[Pair]],
        against: Sequence[Pair] | Literal["others"] | None = None,
        method: str = "c-bpo",
        *,
        epochs: int = 3,
        learning_rate: float | None = None,
        config: Mapping[str, Scalar] | None = None,
    ) -> "dict[str, PersonalModel]":
        """Train the adapters of several users at once, in the same passes.

        Each user gets what a training alone gives, up to the last bits. Memory grows with
        the number of users.

        Parameters
        ----------
        people
            Name of a user -> pairs to learn from.
        against
            What stands for everyone else: pairs that other people wrote; ``"others"``: the
            pairs of the other users; None: samples of this model at the user's prompts.
        method
            ``sft``, ``cope``, ``kto``, ``bco``, ``c-bpo`` or ``positives``. The first two
            do not use `against`.
        epochs, learning_rate
            Passes over the own pairs, and Adam's learning rate; None: by the number of the
            model's parameters, as on a device.
        config
            Other keys of docs/configuration.md, such as ``{"personalise.beta": 2.0}``.

        Returns
        -------
        dict
            Name -> model with the user's adapter.

        Raises
        ------
        IdiolectError
            A pair or a setting is wrong, or the training of a user overflowed.
        """
        if learning_rate is None:
            learning_rate = rates_for(self.reference.backbone.parameters).usual
        keys: dict[str, Scalar] = {
            **self.settings,
            "methods": method,
            "personalise.epochs": epochs,
            "personalise.learning-rates": repr(learning_rate),
            "unlabeled.kind": "self",
            **(config or {}),
        }
        chosen, users = parse(keys), [_user(*entry) for entry in people.items()]
        refuse_if(not users, "people is empty: give {name: pairs} of one at least.")
        refuse_if(
            method in UNTRAINED,
            f"method '{method}' trains no adapter: use sft, c-bpo or another one of "
            "docs/library.md.",
        )
        if against is not None:  # `parse` refuses this kind, which no device can have
            chosen = replace(chosen, unlabeled=replace(chosen.unlabeled, kind="others"))
        rate, unlabeled = chosen.learning_rate_list[0], _unlabeled(against, users)
        found = personalise(self.reference, users, unlabeled, method, rate, chosen)
        if errors := [one.error for one in found if one.error]:
            raise IdiolectError(errors[0])
        scale = chosen.lora.scaling  # of an adapter as it was trained
        return {one.user: PersonalModel(self.reference, one, scale) for one in found}

    def forget(self) -> None:
        """Drop what was computed from users' texts and is kept for the next training."""
        self.reference.forget()


class PersonalModel(Policy):
    """A model with one user's adapter on it.

    Attributes
    ----------
    user
        The user's name.
    strength
        By how much the adapter changes the model: 1 is as it was trained.
    alpha
        How much of everyone else's text C-BPO counts as the user's. An estimate is no share
        of a mixture: docs/alpha.md.
    log
        ``steps``, ``loss`` of the last one, ``clamp_rate``, ``delta``, ``truncated`` and
        ``ess`` (`common.methods.personalise.Personal`).
    """

    def __init__(
        self, reference: Reference, personal: Personal, scaling: float
    ) -> None:
        super().__init__(reference, personal.lora)
        self.user, self.alpha, self.log = personal.user, personal.alpha, personal.log
        self.strength = personal.strength
        self._personal, self._scaling = personal, scaling

    def at_strength(self, strength: float) -> "PersonalModel":
        """Return this model with the adapter's change multiplied, from 0 to 4.

        0 is the model without the adapter, 1 the adapter as it was trained. What is saved
        carries the strength. ``config={"personalise.strength": "fitted"}`` finds one.
        """
        refuse_if(
            not 0 <= strength <= MOST_STRENGTH,
            f"a strength of {strength} is not possible: give a number from 0 to "
            f"{MOST_STRENGTH:g}; 1 is the adapter as it was trained.",
        )
        lora = self.own and replace(self.own, scaling=strength * self._scaling)
        personal = replace(self._personal, lora=lora, strength=strength)
        return PersonalModel(self.reference, personal, self._scaling)

    def compare(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Return `nll` of texts by three models: lower is better.

        ``base`` is the backbone alone, ``shared`` the model that was personalised. The
        texts should be ones that were not trained on.
        """
        models = {"base": Policy(self.reference.bare), "shared": Policy(self.reference)}
        return {name: m.nll(pairs) for name, m in {**models, "personal": self}.items()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a PEFT adapter: the shared and the own one, joined into one LoRA.

        ``peft.PeftModel.from_pretrained(model, folder)`` then has the logits of this
        model, and so has ``load(name, shared=folder)``. The files are as private as the
        texts: a ``UserWarning`` and the folder's README.md say so.
        """
        if self.own is not None:
            adapters = self.reference.adapter, self.own
            export_peft(Path(folder).expanduser(), self.reference.backbone, *adapters)
            warnings.warn(REVEALS, stacklevel=2)


def _unlabeled(
    against: Sequence[Pair] | str | None, users: Sequence[User]
) -> UnlabeledSet:
    """The unlabeled set, in which each item knows its author, if that is a user."""
    refuse_if(
        isinstance(against, str) and against != "others",
        f'against is {against!r}: give a list of pairs, "others" or None.',
    )
    if isinstance(against, str):
        written = [(item, user.id) for user in users for item in user.history]
    else:
        items = [] if against is None else _items("against", against)
        written = [(item, "") for item, _ in items]
    return UnlabeledSet(tuple(Unlabeled(item, 1.0, name) for item, name in written))


def _user(name: str, pairs: Sequence[Pair]) -> User:
    items = _items(name, pairs)
    liked = tuple(item for item, label in items if label)
    return User(name, liked, (), disliked=tuple(i for i, label in items if not label))


def _items(name: str, pairs: Sequence[Pair]) -> list[tuple[Item, bool]]:
    """Pairs as items, and whether the user likes each.

    Raises
    ------
    IdiolectError
        There are none, or one of them is not a pair of texts.
    """
    found: list[tuple[Item, bool]] = []
    for number, pair in enumerate(pairs, start=1):
        place, label = f"{name}, pair {number}", True
        try:
            if isinstance(pair, Mapping):
                label = bool(pair.get("label", True))
                pair = pair["prompt"], pair["completion"]
            prompt, text = (None, None) if isinstance(pair, str) else pair
        except (KeyError, TypeError, ValueError):
            prompt, text = None, None
        if not (isinstance(prompt, str) and isinstance(text, str) and text):
            raise IdiolectError(
                f"{place}: give (prompt, text), or a mapping with prompt and completion; "
                "both are strings, and the text is not empty."
            )
        found.append((Item(place, Prompt("", prompt), text), label))
    refuse_if(not found, f"{name}: there are no pairs; give at least one.")
    return found
