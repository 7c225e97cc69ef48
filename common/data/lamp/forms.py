"""The questions of LaMP and LongLaMP, and how history gets the same form.

Sources: Salemi et al. 2024, "LaMP: When Large Language Models Meet Personalization"
(questions, labels); Kumar et al. 2024, "LongLaMP" (the same for long texts); Tan et al.
2024, OPPU (the one-word cue behind the input).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..types import Task


@dataclass(frozen=True)
class Form:
    """The form of the questions of one task, and of history pairs.

    Attributes
    ----------
    question
        The published instruction before the user's text.
    wording
        Pattern of such a question in another wording, with the groups ``before`` and
        ``input``; the rest is `Prompt.after`.
    source, answer
        Fields of a profile item: x and y of a history pair. No answer field: the text
        itself is split (`pair`).
    cue
        Word before the answer. Without it a causal model without chat template would
        continue the input; OPPU adds the same word.
    stop
        What follows the user's text in the question; empty: nothing.
    history
        Instruction of a history pair if profiles have no answers to such questions.
    template
        The whole question with fields of a profile item in braces (LongLaMP). Only the
        field `source` is ever shortened. Empty: `question` and the text behind it.
    whole
        Whether a history pair has all that a question has. If not, no history pair is
        held out, because it would ask for something else.
    date
        Field of a profile item that says when it was written.
    """

    task: Task
    question: str
    source: str
    answer: str
    cue: str
    wording: str
    stop: str = ""
    history: str = ""
    template: str = ""
    whole: bool = True
    date: str = "date"

    def asks(self, before: str) -> bool:
        """Whether this is how the published question begins."""
        if not self.template:
            return before == self.question
        opening = self.template.partition(f"{{{self.source}}}")[0]
        parts = (re.escape(part) for part in _FIELD.split(opening)[::2])
        return re.fullmatch(".*?".join(parts), before) is not None

    def filled(self, fields: Mapping[str, str]) -> tuple[str, str]:
        """What stands before and after the source in a history pair, without the cue."""
        before, _, after = self.template.partition(f"{{{self.source}}}")
        parts = (_FIELD.sub(lambda m: fields[m[1]], part) for part in (before, after))
        return next(parts), next(parts)

    @property
    def others(self) -> list[str]:
        """Fields of the template other than the source."""
        return [name for name in _FIELD.findall(self.template) if name != self.source]


_FIELD = re.compile(r"\{(\w+)\}")
_QUOTE = "[\"\u201c\u201d\u201e\u00ab\u00bb\u2018\u2019']"
TAGS = (
    "sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia",
    "dark comedy", "classic", "psychology", "fantasy", "romance", "thought-provoking",
    "social commentary", "violence", "true story",
)  # fmt: skip
CATEGORIES = (
    "women", "religion", "politics", "style & beauty", "entertainment",
    "culture & arts", "sports", "science & technology", "travel", "business", "crime",
    "education", "healthy living", "parents", "food & drink",
)  # fmt: skip
FORMS: dict[str, Form] = {
    "LaMP-1": Form(
        Task("LaMP-1", "classification", ("[1]", "[2]"), max_new_tokens=8),
        question='For an author who has written the paper with the title "',
        stop='", which reference is related?',
        source="title",
        answer="abstract",
        cue=" reference:",
        wording=rf"(?P<before>.{{0,200}}?\bpaper\b.{{0,60}}?\btitled?\b\s*:?\s*{_QUOTE}?)"
        rf"(?P<input>.+?){_QUOTE}?\s*,?\s*which reference is related\b",
        history="Write an abstract for this title: ",
    ),
    "LaMP-2": Form(
        Task("LaMP-2", "classification", TAGS, max_new_tokens=16),
        question="Which tag does this movie relate to among the following tags? Just "
        "answer with the tag name without further explanation. tags: "
        f"[{', '.join(TAGS)}] description: ",
        source="description",
        answer="tag",
        cue=" tag:",
        wording=r"(?=.*\btags?\b)(?P<before>.{0,2000}?\bdescription\s*:\s*)"
        r"(?P<input>.+?)(?:\s*\btags\s*:\s*\[[^\]]*\]\W*)?$",
    ),
    # LaMP-2 as it was first published, about news; OPPU calls it LaMP_2N.
    "LaMP-2N": Form(
        Task("LaMP-2N", "classification", CATEGORIES, max_new_tokens=16),
        question="Which category does this article relate to among the following "
        "categories? Just answer with the category name without further explanation. "
        f"categories: [{', '.join(CATEGORIES)}] article: ",
        source="text",
        answer="category",
        cue=" category:",
        wording=r"(?=.*\bcategor(?:y|ies)\b)(?P<before>.{0,2000}?\barticle\s*:\s*)"
        r"(?P<input>.+?)(?:\s*\bcategories\s*:\s*\[[^\]]*\]\W*)?$",
    ),
    "LaMP-3": Form(
        Task("LaMP-3", "rating", ("1", "2", "3", "4", "5"), max_new_tokens=8),
        question="What is the score of the following review on a scale of 1 to 5? just "
        "answer with 1, 2, 3, 4, or 5 without further explanation. review: ",
        source="text",
        answer="score",
        cue=" score:",
        wording=r"(?P<before>.{0,300}?\b(?:score|rate|rating)\b.{0,300}?\breview\s*:\s*)"
        r"(?P<input>.+)",
    ),
    "LaMP-4": Form(
        Task("LaMP-4", "generation"),
        question="Generate a headline for the following article: ",
        source="text",
        answer="title",
        cue=" headline:",
        wording=r"(?P<before>.{0,200}?\bheadline\b.{0,100}?\barticle\s*:\s*)(?P<input>.+)",
    ),
    "LaMP-5": Form(
        Task("LaMP-5", "generation", max_new_tokens=48),
        question="Generate a title for the following abstract of a paper: ",
        source="abstract",
        answer="title",
        cue=" title:",
        wording=r"(?P<before>.{0,200}?\btitle\b.{0,100}?\babstract\b[^:]{0,40}:\s*)"
        r"(?P<input>.+)",
    ),
    "LaMP-6": Form(
        Task("LaMP-6", "generation"),
        question="Generate a subject for the following email: ",
        source="text",
        answer="title",
        cue=" subject:",
        wording=r"(?P<before>.{0,200}?\bsubject\b.{0,100}?\be-?mail\s*:\s*)(?P<input>.+)",
    ),
    "LaMP-7": Form(
        Task("LaMP-7", "generation", max_new_tokens=64),
        question="Paraphrase the following tweet without any explanation before or "
        "after it: ",
        source="text",
        answer="",
        cue=" tweet:",
        wording=r"(?P<before>.{0,200}?\bparaphrase\b[^:]{0,200}:\s*)(?P<input>.+)",
        history="Complete the following tweet: ",
    ),
    # LongLaMP: published questions number these tasks in two orders, so they have names.
    "LongLaMP-abstract": Form(
        Task("LongLaMP-abstract", "long", max_new_tokens=512),
        question='Generate an abstract for the title "',
        stop='" using the following items:',
        source="title",
        answer="abstract",
        cue=" abstract:",
        template='Generate an abstract for the title "{title}"',
        whole=False,
        date="year",
        wording=rf"(?P<before>.{{0,200}}?\babstract\b.{{0,100}}?\btitled?\b\s*:?\s*"
        rf"{_QUOTE}?)(?P<input>.+?){_QUOTE}?\s*\.?\s*"
        r"(?:\b(?:using|with) the following items\b.*)?$",
    ),
    "LongLaMP-review": Form(
        Task("LongLaMP-review", "long", max_new_tokens=1024),
        question="",
        source="description",
        answer="reviewText",
        cue=" review:",
        # "has a given" is how it is published.
        template="Generate the review text written by a reviewer who has a given an "
        'overall rating of "{overall}" for a product with description "{description}". '
        'The summary of the review text is "{summary}".',
        wording=rf"(?P<before>.{{0,200}}?\breview\b.{{0,200}}?\bdescription\b\s*:?\s*"
        rf"{_QUOTE}?)(?P<input>.+?){_QUOTE}?\s*\.?\s*\bThe summary of the review\b",
    ),
    "LongLaMP-topic": Form(
        Task("LongLaMP-topic", "long", max_new_tokens=1024),
        question="Generate the content for a reddit post ",
        source="summary",
        answer="content",
        cue=" content:",
        template="Generate the content for a reddit post {summary}",
        wording=r"(?P<before>.{0,200}?\bcontent\b.{0,60}?\breddit post\b\s*:?\s*)"
        r"(?P<input>.+)",
    ),
}
