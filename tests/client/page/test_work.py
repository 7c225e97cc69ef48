"""The page's side of the processes that load the model, with ones that only say things."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from idiolect.client.owner.keys import RandomKey
from idiolect.client.page import work
from idiolect.client.page.work import GONE, Scribe, Trainer
from idiolect.client.page.worker import END, STOP
from idiolect.common.errors import IdiolectError

KEY, NOWHERE = RandomKey(bytes(32)), Path("/nowhere/vault.db")
PIECE = {"name": "personal", "piece": "a "}


class Said:
    """A process that says what a test tells it to."""

    made: "list[Said]" = []

    def __init__(self, *events: Any) -> None:
        self.asked: list[Any] = []
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        for event in events:
            self.events.put_nowait(event)
        self.running = True

    async def ask(self, **request: Any) -> None:
        self.asked.append(request)
        if request == STOP:
            self.events.put_nowait(END)

    async def said(self) -> Any:
        return await self.events.get()

    async def end(self) -> None:
        self.running = False
        self.events.put_nowait(None)


@pytest.fixture
def start(monkeypatch):
    """Let these processes be started, one after the other; returns those that were."""

    def given(*processes: Said) -> list[Said]:
        waiting, made = list(processes), []

        async def started(*_: Any) -> Said:
            made.append(waiting.pop(0))
            return made[-1]

        monkeypatch.setattr(work.Process, "start", started)
        return made

    return given


async def all_of(scribe: Scribe, prompt: str = "x") -> list[Any]:
    return [event async for event in scribe.write(prompt=prompt)]


def test_texts_come_in_pieces_and_the_process_is_kept(start):
    async def play() -> None:
        one = Said({"phase": "loading"}, PIECE, END, PIECE, PIECE, END)
        made, scribe = start(one), Scribe(NOWHERE, KEY)
        assert await all_of(scribe, "first") == [{"phase": "loading"}, PIECE]
        assert await all_of(scribe, "second") == [PIECE, PIECE]
        assert one.asked == [{"prompt": "first"}, {"prompt": "second"}]
        assert made == [one]

    asyncio.run(play())


def test_who_leaves_ends_the_text_and_the_next_one_is_written(start):
    async def play() -> None:
        one = Said(PIECE)
        start(one)
        scribe, begun = Scribe(NOWHERE, KEY), asyncio.Event()

        async def reads() -> None:
            async for _ in scribe.write(prompt="first"):
                begun.set()

        reader = asyncio.create_task(reads())
        await begun.wait()
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        for event in (PIECE, END):
            one.events.put_nowait(event)
        found = await asyncio.wait_for(all_of(scribe, "second"), 5)
        assert one.asked == [{"prompt": "first"}, STOP, {"prompt": "second"}]
        assert found == [PIECE]

    asyncio.run(play())


def test_who_leaves_while_waiting_holds_up_nobody(start):
    async def play() -> None:
        one = Said(PIECE)
        start(one)
        scribe = Scribe(NOWHERE, KEY)
        first = asyncio.create_task(all_of(scribe, "first"))
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(all_of(scribe, "left"))
        last = asyncio.create_task(all_of(scribe, "last"))
        await asyncio.sleep(0.01)
        waiting.cancel()
        for event in (END, PIECE, END):
            one.events.put_nowait(event)
        assert await asyncio.wait_for(first, 5) == [PIECE]
        assert await asyncio.wait_for(last, 5) == [PIECE]
        assert {"prompt": "left"} not in one.asked

    asyncio.run(play())


def test_a_process_that_was_just_ending_is_started_again(start):
    async def play() -> None:
        made = start(Said(None), Said(PIECE, END))
        assert await all_of(Scribe(NOWHERE, KEY)) == [PIECE]
        assert len(made) == 2 and made[1].asked == [{"prompt": "x"}]

    asyncio.run(play())


def test_a_process_that_cannot_load_is_not_started_forever(start):
    async def play() -> None:
        made = start(Said(None), Said(None), Said(PIECE, END))
        scribe = Scribe(NOWHERE, KEY)
        with pytest.raises(IdiolectError, match="the text was cut off"):
            await asyncio.wait_for(all_of(scribe), 5)
        assert len(made) == 2
        assert await asyncio.wait_for(all_of(scribe), 5) == [PIECE]

    asyncio.run(play())


@pytest.mark.parametrize("then", [END, None])
def test_an_error_is_passed_on_and_the_next_text_is_written(start, then):
    async def play() -> None:
        events = [{"error": "no."}, then]
        start(Said(*events, PIECE, END), Said(PIECE, END))
        scribe = Scribe(NOWHERE, KEY)
        assert await asyncio.wait_for(all_of(scribe), 5) == [{"error": "no."}]
        assert await asyncio.wait_for(all_of(scribe), 5) == [PIECE]

    asyncio.run(play())


def test_one_training_at_a_time_and_what_came_of_it(start):
    async def play() -> None:
        one = Said({"progress": "step 1 of 3", "done": 1, "of": 3})
        made, trainer = start(one), Trainer(NOWHERE, KEY)
        await trainer.start("c-bpo")
        with pytest.raises(IdiolectError, match="a training is running"):
            await trainer.start("sft")
        await asyncio.sleep(0.01)
        assert (trainer.at.words, trainer.at.done, trainer.at.of) == (
            "step 1 of 3",
            1,
            3,
        )
        one.events.put_nowait({"trained": {"number": 1}})
        one.events.put_nowait(None)
        await asyncio.sleep(0.01)
        assert not trainer.at.running and trainer.at.outcome == {"number": 1}
        assert made[0].asked == [{"method": "c-bpo"}]

    asyncio.run(play())


def test_a_training_that_is_stopped_is_no_error_and_one_that_dies_is(start):
    async def play() -> None:
        start(Said(), Said(None))
        trainer = Trainer(NOWHERE, KEY)
        await trainer.start("c-bpo")
        await asyncio.wait_for(trainer.stop(), 5)
        assert trainer.at.stopped and not trainer.at.running and not trainer.at.error
        await trainer.stop()  # again: nothing is running
        await trainer.start("c-bpo")
        await asyncio.sleep(0.01)
        assert not trainer.at.running and trainer.at.error == GONE

    asyncio.run(play())


def test_a_training_that_is_just_starting_is_stopped_too(monkeypatch):
    """Forgetting stops it: it must not go on because its process was not there yet."""

    async def go() -> None:
        process, may = Said(), asyncio.Event()

        async def started(*_: Any) -> Said:
            await may.wait()
            return process

        monkeypatch.setattr(work.Process, "start", started)
        trainer = Trainer(NOWHERE, KEY)
        starting = asyncio.create_task(trainer.start("sft"))
        await asyncio.sleep(0)
        stopping = asyncio.create_task(trainer.stop())
        await asyncio.sleep(0)
        assert not stopping.done()
        may.set()
        await asyncio.gather(starting, stopping)
        assert not process.running and not trainer.at.running and trainer.at.stopped

    asyncio.run(go())
