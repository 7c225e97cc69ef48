"""The unlabeled set."""

from idiolect.common import config
from idiolect.common.data.types import Item, Prompt
from idiolect.common.unlabeled.sets import Unlabeled, fingerprint, population_share


def items(*texts: str) -> list[Item]:
    return [Item(f"i{k}", Prompt("", "p"), text) for k, text in enumerate(texts)]


BANK = items(
    "the harbour opens at dawn",
    "a recipe for plum cake",
    "seven goals in the derby",
    "the plum harvest is early",
    "rain over the northern hills",
)


def test_the_fingerprint_sees_every_part():
    entry = Unlabeled(BANK[0], 1.0, "")
    others = [
        Unlabeled(BANK[0], 1.5, ""),
        Unlabeled(BANK[0], 1.0, "u"),
        Unlabeled(BANK[1], 1.0, ""),
    ]
    assert (
        len({fingerprint([one]) for one in [entry, *others]} | {fingerprint([])}) == 5
    )
    assert fingerprint([entry]) == fingerprint([Unlabeled(BANK[0], 1.0, "")])


def test_alpha_is_a_share_only_where_people_wrote_the_text():
    kinds = ("votes", "others", "anonymised", "self", "public")
    shares = {kind: population_share(config.Unlabeled(kind=kind)) for kind in kinds}
    people = {"votes": True, "others": True, "anonymised": True}
    assert shares == {**people, "self": False, "public": False}
    assert not population_share(config.Unlabeled(kind="votes", bank_from="shared"))
