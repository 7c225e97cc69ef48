"""Who is measured how."""

from types import SimpleNamespace
from typing import Any, cast

from idiolect.common.config import parse
from idiolect.server.run import personalise


def asked(method: str, **keys: Any) -> list[tuple[tuple[str, ...], bool]]:
    """Who is measured by a method, and whether texts are written; "a" has no `sft`."""
    calls: list[tuple[tuple[str, ...], bool]] = []

    def measure(names, _method, _rate, generate):
        calls.append((names, generate))
        return {name: {} for name in names}

    run = SimpleNamespace(
        config=parse({f"evaluate.{key}": value for key, value in keys.items()}),
        cohort=SimpleNamespace(users=("a", "b", "c", "d"), measure=measure),
        state=SimpleNamespace(
            outcomes={"sft": dict.fromkeys("bcd")}, learning_rates={}, metrics={}
        ),
        save=lambda: None,
    )
    personalise.measure(cast(Any, run), method)
    return calls


def test_every_method_writes_texts_for_the_same_users():
    assert asked("shared", users=2) == [(("a", "b"), True), (("c", "d"), False)]
    assert asked("sft", users=2) == [(("b",), True), (("c", "d"), False)]
    assert asked("sft") == [(("b", "c", "d"), True)]
    assert asked("sft", generate=False) == [(("b", "c", "d"), False)]
