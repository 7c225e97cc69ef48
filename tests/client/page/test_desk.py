"""Two tabs at once, and an end in the middle: what the addresses share."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from idiolect.client.owner import forgetting, history
from idiolect.client.owner.forgetting import forget as forgotten
from idiolect.client.page import app as page
from idiolect.client.page.uploads import invented
from idiolect.common.errors import IdiolectError

from .conftest import KEY, looked_into


def both(found: list[Any]) -> tuple[list[Any], list[str]]:
    """What was answered, and what was refused."""
    wrong = [one for one in found if isinstance(one, BaseException)]
    assert all(isinstance(one, IdiolectError) for one in wrong), wrong
    return [one for one in found if one not in wrong], [str(one) for one in wrong]


def test_two_tabs_forget_and_add_the_same(place: Path) -> None:
    async def play() -> None:
        desk = page.opened(place, KEY)
        wait = desk.uploads.keep(invented(), "made up")
        two = [page.add(desk, {"id": wait}) for _ in range(2)]
        added, refused = both(await asyncio.gather(*two, return_exceptions=True))
        assert [one["new"] for one in added] == [32] and "no longer" in refused[0]
        two = [page.forget(desk, {"sources": ["mails"]}) for _ in range(2)]
        gone, refused = both(await asyncio.gather(*two, return_exceptions=True))
        assert [one["pairs"] for one in gone] == [4] and "no source" in refused[0]
        await desk.close()

    asyncio.run(play())
    with looked_into(place) as vault:
        assert len(history.entries(vault)) == 34 and vault.check() > 0


def test_an_end_in_the_middle_of_forgetting_waits_for_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(*asked: Any) -> Any:
        begun.set()
        go_on.wait(10)
        return forgotten(*asked)

    monkeypatch.setattr(forgetting, "forget", slow)

    async def play() -> None:
        desk = page.opened(place, KEY)
        asked = asyncio.create_task(page.forget(desk, {"sources": ["mails"]}))
        await asyncio.to_thread(begun.wait, 10)
        asked.cancel()  # as the server does with what has not ended in time
        end = asyncio.create_task(desk.close())
        await asyncio.sleep(0.05)
        assert not end.done()
        go_on.set()
        await asyncio.wait_for(end, 10)

    asyncio.run(play())
    with looked_into(place) as vault:
        assert {e.source for e in history.entries(vault)} == {"chat"}
        assert vault.check() > 0
