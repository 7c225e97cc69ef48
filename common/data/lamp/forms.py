"""The questions of LaMP-1 ... LaMP-7, and how history gets the same form.

Sources: Salemi et al. 2024, "LaMP: When Large Language Models Meet Personalization"
(questions, labels); Tan et al. 2024, OPPU (the one-word cue behind the input).
"""

from dataclasses import dataclass

from ..types import Task


@dataclass(frozen=True)
class Form:
    """The form of the questions of one LaMP task, and of history pairs.

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
    """

    task: Task
    question: str
    source: str
    answer: str
    cue: str
    wording: str
    stop: str = ""
    history: str = ""


_QUOTE = "[\"\u201c\u201d\u201e\u00ab\u00bb\u2018\u2019']"
TAGS = (
    "sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia",
    "dark comedy", "classic", "psychology", "fantasy", "romance", "thought-provoking",
    "social commentary", "violence", "true story",
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
}
