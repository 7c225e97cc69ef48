"""PAG: the user's own items behind a profile of the user (Richardson et al. 2023)."""

from ..config import Config
from ..data.load import task_of
from ..data.types import Prompt, User
from ..engine.fitting import output_budget
from ..engine.reference import Reference
from ..engine.scoring import generate
from .rag import with_history

# A profile: how many texts it is written from, at most, and how many tokens it may have
# (a sentence or two: it shares the context with the question).
PROFILED = 16
PROFILE_TOKENS = 48
ASKED = "\nDescribe in one sentence how the author of these texts writes:"


def prompted(reference: Reference, user: User, config: Config) -> User:
    """The user with the prompts that this method asks."""
    profile = write_profile(reference, user)
    count = config.evaluate.retrieved
    budget = output_budget(reference.backbone, task_of(config.task))
    return with_history(reference.backbone, user, count, budget, profile)


def write_profile(reference: Reference, user: User) -> str:
    """Let the shared policy describe, greedily, how a user writes.

    It reads the newest texts of the history, without their prompts. One user at a time,
    so that a profile does not depend on who else is stacked.
    """
    texts = "\n".join(item.target for item in user.history[-PROFILED:])
    backbone = reference.backbone
    room = backbone.context - PROFILE_TOKENS
    prompt, _ = backbone.encode_prompt(Prompt("", texts, ASKED), room, user.id)
    return generate(backbone, [reference.shared], [prompt], PROFILE_TOKENS)[0]
