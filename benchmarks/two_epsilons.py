"""The two epsilons of sums to which each user adds noise, by who works with the server.

    python benchmarks/two_epsilons.py

For the users and releases of the study `secagg_utility`: what is published costs the
epsilon that was asked for, and the sums that the server sees before it adds noise of its
own cost the second one. Nothing is trained. Writes the table of docs/masked-sums.md.
"""

import math

from report import ROOT, between

from idiolect.common.config import Config, parse
from idiolect.server.privacy.accountant import epsilons
from idiolect.server.run.budget import Population, noise_of, programme
from idiolect.server.study.declaration import read_study

STUDY = ROOT / "simulations" / "lamp" / "experiments" / "secagg_utility.toml"
PAGE = ROOT / "docs" / "masked-sums.md"
BEGIN, END = "<!-- epsilons: written by a command -->\n", "<!-- epsilons: end -->"
COLLUDING = 0.0, 0.1, 0.3, 0.5


def spent(epsilon: float, colluding: float) -> tuple[float, float]:
    """Epsilon of what is published, and of the sums that the server sees."""
    study = read_study(STUDY)
    config: Config = parse(
        study.config
        | {
            "privacy.epsilon": epsilon,
            "secagg.mode": "sum",
            "secagg.colluding": colluding,
        }
    )
    people = Population(config.users, config.development_users, config.users)
    planned = programme(config, noise_of(config, people), people)
    found = epsilons(planned, config.privacy.delta)
    return found.release, found.participants


def upper(value: float) -> str:
    """Two digits after the point, rounded up: an epsilon is a bound."""
    return f"{math.ceil(value * 100) / 100:.2f}" if value < math.inf else "none"


def table() -> str:
    """The table, as Markdown."""
    heads = ["the server alone"]
    heads += [f"with {100 * share:.0f} % of the members" for share in COLLUDING[1:]]
    lines = ["| what is published | " + " | ".join(heads) + " |"]
    lines.append("| --- |" + " --- |" * len(COLLUDING))
    for asked in read_study(STUDY).grid["privacy.epsilon"]:
        rows = [spent(float(asked), share) for share in COLLUDING]
        seen = " | ".join(upper(server) for _, server in rows)
        lines.append(f"| {upper(rows[0][0])} | {seen} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Write the table."""
    PAGE.write_text(between(PAGE.read_text(), BEGIN, END, table()))


if __name__ == "__main__":
    main()
