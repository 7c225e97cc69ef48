"""What is wrong with texts: loops, nothing, no end, copies."""

import pytest

from idiolect.common.methods.acceptance import FAULTS, Text, copied, fault, loops

FINE = [
    "yep, free after four. call me whenever",
    "omggg congrats!!! so so proud of you, drinks on me tonight",
    "hahahahahaha no way!!!!!!!!!! see you there",
    "ok",
    "",
    "The train was late, so we walked along the river and talked about the old days.",
    "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n",
    "明日は朝から会議があるので、昼過ぎに電話してもらえると助かります。よろしくね。",
    "Nein, morgen geht es leider nicht, aber übermorgen habe ich den ganzen Tag Zeit.",
]
# What SmolLM2-135M-Instruct and the built-in model wrote after training at absurd rates.
LOOPS = [
    "I'm so glad to hear that. I'm so glad to hear that. I'm so glad to hear that.",
    "yes yes yes yes yes yes yes yes yes yes yes yes yes yes yes",
    "thethethethethethethethethethethethethethe",
    "sure, will do and then and then and then and then and then and then and",
    "!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!",
    "はい、はい、はい、はい、はい、はい、はい、はい、はい、",
    "A plan was made, and the plan was good. The plan was made, and a plan was good."
    * 2,
]


@pytest.mark.parametrize("text", FINE)
def test_ordinary_texts_are_no_loops(text):
    assert not loops(text)


@pytest.mark.parametrize("text", LOOPS)
def test_loops_are_noticed(text):
    assert loops(text)


def test_a_copy_is_long_and_most_of_the_text():
    history = "\0".join(["sure thing, will send it tonight so you have it first thing"])
    assert copied(
        "Sure thing,  will send it tonight so you have it FIRST thing", history
    )
    assert copied("oh sure thing, will send it tonight so you have it!", history)
    assert not copied("sure thing, will send it tonight", history)  # everyone does
    more = " and by the way, did you hear that the market moves to the other square?"
    assert not copied(history + more, history)  # less than most of it
    assert not copied("tonight so you have it\0sure thing, will send it", history)


def test_a_piece_of_two_texts_is_no_copy():
    one, two = "i will be there at eight in the", "morning with two cups of tea"
    assert copied(f"{one} {two}", f"{one} {two}")
    assert not copied(f"{one} {two}", f"{one}\0{two}")


def texts(*given: str, ended: bool = True) -> list[Text]:
    return [Text(one, ended) for one in given]


def test_every_fault_is_named_once_more_than_a_quarter_has_it():
    fine = texts(*FINE[:4])
    cases = {
        "loops": texts(*LOOPS[:2], *FINE[:2]),
        "empty": texts("", " ", *FINE[:2]),
        "endless": [*texts(*FINE[:2], ended=False), *texts(*FINE[:2])],
        "copies": texts(FINE[5], FINE[5], *FINE[:2]),
    }
    assert set(cases) == set(FAULTS)
    for name, new in cases.items():
        assert fault(new, fine, fine, FINE[5:]) == name
        assert fault([new[0], *fine[1:]], fine, fine, FINE[5:]) == ""  # one of four
        assert fault(new[:1], fine[:1], fine[:1], FINE[5:]) == name  # one of one
        # What the policy before did as often, or the user does, is not the adapter's.
        assert fault(new, new, fine, FINE[5:]) == ""
        assert fault(new, fine, new, FINE[5:]) == ""


def test_nothing_is_wrong_with_nothing():
    assert fault([], [], [], []) == ""
