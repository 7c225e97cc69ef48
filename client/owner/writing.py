"""The model as its owner uses it: with the adapter in use, a text or a conversation."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...common.engine.adapters import Lora
from ...common.engine.backbone import Backbone
from ...common.engine.pieces import Piece
from ...common.engine.reference import load_reference
from ...common.engine.streaming import Kept, NoNumbers, pieces, sampled, tokens
from ...common.errors import IdiolectError, refuse_if
from ...common.methods import acceptance
from . import adapters, history, limits
from .consent import settings
from .loading import config_of
from .resident import PERSONAL, SHARED, Asked, Reply
from .vault import Vault

# Policy -> what an owner is told whose model gives no numbers with it.
NUMBERLESS = {
    PERSONAL: "the adapter in use gives no numbers: choose another by `idiolect use N`.",
    SHARED: "the model gives no numbers without your adapter either: `idiolect reset` goes "
    "back to the bare model, and `idiolect settings backbone NAME` takes another.",
}


@dataclass(frozen=True, eq=False)
class Writer:
    """The model as its owner uses it.

    Attributes
    ----------
    chosen
        Settings.
    backbone, shared, own
        The model, and both adapters.
    kept
        Policy -> what is kept of its last conversation; of the policy used last only.
    """

    chosen: Mapping[str, str]
    backbone: Backbone
    shared: Lora
    own: Lora
    kept: dict[str, Kept] = field(default_factory=dict)

    def write(self, prompt: str, budget: int, compare: bool = False) -> dict[str, str]:
        """Continue a prompt: ``personal``; with `compare` also ``shared``.

        That is what everyone has: the backbone, with the shared adapter if a run brought
        one.
        """
        asked = Asked((prompt,), budget=budget)
        ids, _ = self._encoded(asked)
        names = ("personal", "shared") if compare else ("personal",)
        with limits.held(self.chosen):
            return {
                name: "".join(
                    piece.text
                    for piece in self._written(ids, replace(asked, policy=name))
                )
                for name in names
            }

    def stream(
        self, prompt: str, budget: int, policy: str = PERSONAL
    ) -> Generator[Piece, None, None]:
        """The pieces of what `write` returns, as `converse` gives them."""
        return self.converse(Asked((prompt,), budget=budget, policy=policy)).pieces

    def converse(self, asked: Asked) -> Reply:
        """Answer a conversation; shown while it is written, and ended by `close`.

        Of one message alone the pieces joined are what `write` returns. Main thread only,
        within the owner's limits (`limits.held`).

        Raises
        ------
        TooLong
            It does not fit.
        IdiolectError
            As many new tokens as are asked for do not.
        """
        ids, dropped = self._encoded(asked)

        def limited() -> Generator[Piece, None, None]:
            with limits.held(self.chosen):
                yield from self._written(ids, asked, self._so_far(asked))

        chat = self.backbone.wording.turn is not None
        return Reply(self.chosen["backbone"], chat, len(ids), dropped, limited())

    def _encoded(self, asked: Asked) -> tuple[list[int], int]:
        """Tokens of a conversation, and how many of its turns were left out."""
        backbone, most = self.backbone, asked.budget if asked.shorten else 1
        refuse_if(
            not 0 < most < backbone.context,
            f"{most} new tokens do not fit into a context of {backbone.context}: ask for 1 "
            f"to {backbone.context - 1}.",
        )
        texts = [history.clean(text) for text in asked.texts]
        system = history.clean(asked.system)
        room = backbone.context - most
        return backbone.encode_conversation(texts, system, room, asked.shorten)

    def _so_far(self, asked: Asked) -> Kept:
        """What is kept of this conversation; nothing where it begins."""
        known = self.kept.get(asked.policy) if len(asked.texts) > 1 else None
        self.kept.clear()
        self.kept[asked.policy] = known or Kept()
        return self.kept[asked.policy]

    def _written(
        self, ids: Sequence[int], asked: Asked, kept: Kept | None = None
    ) -> Iterator[Piece]:
        used = [self.shared, self.own] if asked.policy == PERSONAL else [self.shared]
        room = self.backbone.context - len(ids)
        most = min(asked.budget or room, room)
        choose = sampled(asked.temperature, asked.top_p, asked.seed)
        how = acceptance.REPETITION, choose
        written = tokens(self.backbone, used, ids, most, *how, kept)
        texts = history.tidy, history.clean, asked.stops
        try:
            yield from pieces(self.backbone, written, most, *texts)
        except NoNumbers as error:
            raise IdiolectError(NUMBERLESS[asked.policy]) from error


def standing(vault: Vault) -> tuple[Any, ...]:
    """What a `Writer` depends on; empty: the vault is gone."""
    try:
        file = vault.path.stat().st_ino  # another one may have been made in its place
        with vault.reading():
            used = adapters.active(vault), adapters.turned(vault)
            return file, settings(vault), used
    except (OSError, IdiolectError):
        return ()


def writer(vault: Vault) -> Writer:
    """Load the model and the adapter in use.

    Raises
    ------
    IdiolectError
        They cannot be loaded, or none is in use.
    """
    chosen = settings(vault)
    with limits.held(chosen):
        loaded = load_reference(config_of(chosen))
        both = adapters.adapter(vault, loaded.backbone, loaded.adapter)
    return Writer(chosen, loaded.backbone, *both)
