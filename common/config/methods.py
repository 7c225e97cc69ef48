"""The methods: one row each, as plain data, without torch.

What a row says decides what a run prepares for a method (the unlabeled set, reference
scores), and which config keys its results depend on. The code of a method is the module
`idiolect.common.methods.<module>`, which is loaded when the method is used.
"""

from dataclasses import dataclass

# Keys that only some methods read; a key names this by `affects` (`keys.SOME`).
TRAINING = ("personalise.epochs", "personalise.batch", "personalise.learning-rates")
UNLABELED = (
    "unlabeled.kind",
    "unlabeled.file",
    "unlabeled.bank",
    "unlabeled.buckets",
    "unlabeled.bank-from",
    "unlabeled.features",
    "unlabeled.support",
    "unlabeled.ratio",
)
ALPHA = ("unlabeled.alpha", "unlabeled.alpha-features", "unlabeled.alpha-items")
MEANS = ("personalise.ema", "personalise.boundary")
POSITIVE_TERM = ("personalise.reward", "personalise.anchor")
DECODING = ("evaluate.contrast", "evaluate.contrasted")
RETRIEVAL = ("evaluate.retrieved",)


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes
    ----------
    name, aliases
        What a config calls it, and older names that still read.
    module
        Name of its module in `idiolect.common.methods`; "" where it needs none.
    adapter
        Whether each user has an own adapter, which is trained.
    unlabeled
        Whether training needs the unlabeled set.
    pairs
        Whether training needs pairs: own text, and a text of the model at its prompt.
    scores
        Whether training needs log-likelihoods of the reference.
    prompts
        Whether prompts carry retrieved text of the user's history.
    reads
        Keys that not every method reads, and this one does. They are for the caches of
        studies: results at one value stand for all values of a key that is not read.
    """

    name: str
    module: str = ""
    adapter: bool = False
    unlabeled: bool = False
    pairs: bool = False
    scores: bool = False
    prompts: bool = False
    reads: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def contrast(self) -> bool:
        """Whether outputs may be decoded by contrast with the shared adapter."""
        return self.adapter


_TRAINED = (*TRAINING, *DECODING)
_COMPARED = (*_TRAINED, *UNLABELED, "personalise.beta")

TABLE = (
    Method("base"),
    Method("shared"),
    Method("rag", "rag", prompts=True, reads=RETRIEVAL),
    Method("pag", "pag", prompts=True, reads=RETRIEVAL),
    Method("sft", "sft", adapter=True, reads=_TRAINED, aliases=("oppu",)),
    Method(
        "cope",
        "cope",
        adapter=True,
        pairs=True,
        scores=True,
        reads=(*_TRAINED, "personalise.beta"),
    ),
    Method("kto", "kto", adapter=True, unlabeled=True, scores=True, reads=_COMPARED),
    Method(
        "bco",
        "bco",
        adapter=True,
        unlabeled=True,
        scores=True,
        reads=(*_COMPARED, "personalise.ema"),
    ),
    Method(
        "c-bpo",
        "c_bpo",
        adapter=True,
        unlabeled=True,
        scores=True,
        reads=(
            *_COMPARED,
            *ALPHA,
            *MEANS,
            *POSITIVE_TERM,
            "personalise.unlabeled-weight",
        ),
    ),
    Method(
        "positives",
        "positives",
        adapter=True,
        unlabeled=True,
        scores=True,
        reads=(*_COMPARED, *MEANS, *POSITIVE_TERM),
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
