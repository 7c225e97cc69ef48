"""The methods: one row each, as plain data, without torch.

What a row says decides what a run prepares for a method (adapters, the unlabeled set), and
which config keys its results depend on. The code of a method is the module of its name in
`idiolect.common.methods` (`c_bpo` for c-bpo), which is loaded when the method is used.
"""

from dataclasses import dataclass

# Keys that only some methods read; a key names this by `affects` (`keys.SOME`).
LEARNT = ("personalise.items",)
TRAINING = (
    *LEARNT,
    "personalise.epochs",
    "personalise.batch",
    "personalise.learning-rates",
    "personalise.strength",
)
UNLABELED = (
    "unlabeled.kind",
    "unlabeled.file",
    "unlabeled.bank",
    "unlabeled.buckets",
    "unlabeled.bank-from",
    "unlabeled.features",
    "unlabeled.support",
    "unlabeled.ratio",
    "unlabeled.nearness",
    "unlabeled.nearness-features",
)
ALPHA = ("unlabeled.alpha", "unlabeled.alpha-features", "unlabeled.alpha-items")
DISLIKED = ("disliked", "personalise.disliked-weight")
MEANS = ("personalise.ema", "personalise.boundary")
POSITIVE_TERM = ("personalise.reward", "personalise.anchor")
WEIGHT = ("personalise.unlabeled-weight", "personalise.unlabeled-tokens")
DECODING = ("evaluate.contrast", "evaluate.contrasted")
RETRIEVAL = (*LEARNT, "evaluate.retrieved")
STEERING = ("steer.layer", "steer.strength")


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes
    ----------
    name, aliases
        What a config calls it, and older names that still read.
    adapter
        Whether each user has an own adapter, which is trained, or made in another way.
    unlabeled
        Whether training needs the unlabeled set.
    disliked
        Whether training also takes what the user turned down (known negatives).
    prompts
        Whether prompts carry retrieved text of the user's history.
    reads
        Keys that not every method reads, and this one does. They are for the caches of
        studies: results at one value stand for all values of a key that is not read.
    """

    name: str
    adapter: bool = False
    unlabeled: bool = False
    disliked: bool = False
    prompts: bool = False
    reads: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def rated(self) -> bool:
        """Whether it has a learning rate; an adapter without one is not trained."""
        return "personalise.learning-rates" in self.reads


_TRAINED = (*TRAINING, *DECODING)
_COMPARED = (*_TRAINED, *UNLABELED, "personalise.beta")
_C_BPO = (*_COMPARED, *MEANS, *POSITIVE_TERM)

TABLE = (
    Method("base"),
    Method("shared"),
    Method("rag", prompts=True, reads=RETRIEVAL),
    Method("pag", prompts=True, reads=RETRIEVAL),
    Method("sft", adapter=True, reads=_TRAINED, aliases=("oppu",)),
    Method("cope", adapter=True, reads=(*_TRAINED, "personalise.beta")),
    Method(
        "kto",
        adapter=True,
        unlabeled=True,
        disliked=True,
        reads=(*_COMPARED, *DISLIKED),
    ),
    Method(
        "bco",
        adapter=True,
        unlabeled=True,
        disliked=True,
        reads=(*_COMPARED, *DISLIKED, "personalise.ema"),
    ),
    Method(
        "c-bpo",
        adapter=True,
        unlabeled=True,
        disliked=True,
        reads=(*_C_BPO, *DISLIKED, *ALPHA, *WEIGHT),
    ),
    Method("positives", adapter=True, unlabeled=True, reads=_C_BPO),
    Method(
        "steer",
        adapter=True,
        unlabeled=True,
        reads=(*LEARNT, "personalise.strength", *DECODING, *UNLABELED, *STEERING),
    ),
)
BY_NAME = {row.name: row for row in TABLE}
ALIASES = {alias: row.name for row in TABLE for alias in row.aliases}

METHODS = tuple(BY_NAME)
UNTRAINED = tuple(row.name for row in TABLE if not row.adapter)
SETLESS = tuple(row.name for row in TABLE if row.adapter and not row.unlabeled)


def current_name(method: str) -> str:
    """Return the name of a method that may be given by an older one."""
    return ALIASES.get(method, method)
