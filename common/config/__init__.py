"""The configuration: its keys, how it is parsed, and what of it is written where.

`keys` says which keys there are and what each affects, `methods` which methods, `presets`
holds files of values; `checks` refuses what cannot be, `parse` reads and writes, `old`
knows the names of earlier versions, and `page` generates the table of keys.
"""

from .checks import largest_delta
from .keys import (
    FIELDS,
    KINDS,
    LONGEST_NAME,
    MOST_BANK,
    MOST_INT,
    MOST_MADE,
    MOST_NOISE,
    MOST_RATE,
    MOST_USERS,
    PERSONAS,
    TASKS,
    Adapt,
    Config,
    Engine,
    Evaluate,
    LoraShape,
    Persona,
    Personalise,
    Privacy,
    Scalar,
    Unlabeled,
    defaults,
    flatten,
)
from .methods import METHODS, SETLESS, UNTRAINED
from .parse import (
    RunOptions,
    absolute_backbone,
    differences,
    flat_toml,
    from_toml,
    parse,
    parse_run,
    parse_word,
    to_toml,
)

__all__ = [
    "FIELDS",
    "KINDS",
    "LONGEST_NAME",
    "MOST_BANK",
    "MOST_INT",
    "MOST_MADE",
    "MOST_NOISE",
    "MOST_RATE",
    "MOST_USERS",
    "METHODS",
    "PERSONAS",
    "SETLESS",
    "TASKS",
    "UNTRAINED",
    "Adapt",
    "Config",
    "Engine",
    "Evaluate",
    "LoraShape",
    "Persona",
    "Personalise",
    "Privacy",
    "RunOptions",
    "Scalar",
    "Unlabeled",
    "absolute_backbone",
    "defaults",
    "differences",
    "flat_toml",
    "flatten",
    "from_toml",
    "largest_delta",
    "parse",
    "parse_run",
    "parse_word",
    "to_toml",
]
