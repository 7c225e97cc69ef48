"""Personalise a model on one person's messages, compare it with the base, and save it.

Run it with `python examples/personalise_one_user.py [MODEL [FOLDER]]`.
"""

import sys

import idiolect

MESSAGES = [  # what I was asked, my answer, and somebody else's
    ("Dinner on Friday?", "yesss friday!! 7ish?", "Friday suits me, thank you."),
    ("Did you get home?", "home, all good!! night!!", "Yes, I arrived at nine."),
    ("Is the report ready?", "almost!! 10 more min?", "You will have it at noon."),
    ("Can you call me?", "in a bit!! on the tram", "I will call you after lunch."),
    ("Is the jacket new?", "haha no, my brothers!!", "Yes, I bought it in May."),
    ("Coffee at four?", "four it is!! usual place?", "Four o'clock is fine."),
    ("How was the film?", "sooo long!! loved it tho", "It was very well made."),
    ("Are you coming?", "running late!! 10 min?", "I shall be there soon."),
    ("Lunch on Monday?", "monday yesss!! 12ish?", "Monday would suit me."),
    ("Who won the match?", "we did!! 3-1, can u believe?", "The visitors won."),
]
mine = [(question, answer) for question, answer, _ in MESSAGES]
others = [(question, answer) for question, _, answer in MESSAGES]
train, unseen = mine[:8], mine[8:]

model = idiolect.load(sys.argv[1] if len(sys.argv) > 1 else "tiny")
me = model.personalise(train, against=others, method="c-bpo", epochs=6)

print("log:", {name: round(value, 2) for name, value in me.log.items()})
print("NLL per token:", {n: round(v, 3) for n, v in me.compare(unseen).items()})
for whose, answer in (("my", mine[-1]), ("their", others[-1])):
    gain = me.score([answer])[0] - model.score([answer])[0]
    print(f"log-odds of {whose} last answer against the base: {gain:+.1f}")
print("base:", repr(model.generate("Tea on Sunday?", max_new_tokens=16)))
print("me:  ", repr(me.generate("Tea on Sunday?", max_new_tokens=16)))
if len(sys.argv) > 2:
    me.save_pretrained(sys.argv[2])  # for peft.PeftModel.from_pretrained
