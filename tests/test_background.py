"""Computations in steps: what they show, what cancels them, and that nothing of them stays behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from nbsupport.widgets.base import Background


def busy() -> bool:
    """Whether a computation goes on beside the test's own task."""
    return len(asyncio.all_tasks()) > 1


class Watch:
    """Everything that a background computation tells."""

    def __init__(self) -> None:
        self.shown: list[int] = []
        self.failed: list[Exception] = []
        self.closed = 0

    def steps(self, count: int) -> Iterator[int]:
        try:
            yield from range(count)
        finally:
            self.closed += 1

    def start(self, background: Background, count: int) -> None:
        background.start(self.steps(count), self.shown.append, self.failed.append)


def test_without_an_event_loop_all_steps_are_taken_at_once() -> None:
    watch, background = Watch(), Background(threading.RLock())
    watch.start(background, 3)
    assert (watch.shown, watch.failed, watch.closed) == ([0, 1, 2], [], 1)


def test_the_loop_answers_between_steps() -> None:
    watch, background = Watch(), Background(threading.RLock())

    async def reader() -> list[int]:
        watch.start(background, 5)
        seen = []
        while busy():
            seen.append(len(watch.shown))
            await asyncio.sleep(0)
        return seen

    seen = asyncio.run(reader())
    assert set(range(6)) <= set(seen), "every state was there to be seen"
    assert watch.shown == list(range(5))


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_cancelled_computation_takes_no_further_step(after: int) -> None:
    watch, background = Watch(), Background(threading.RLock())

    async def reader() -> None:
        watch.start(background, 1000)
        while len(watch.shown) < after:
            await asyncio.sleep(0)
        background.cancel()
        while busy():
            await asyncio.sleep(0)

    threads = threading.active_count()
    asyncio.run(reader())
    assert len(watch.shown) == after
    assert watch.closed == (after > 0), "its generator is closed if it was begun"
    assert threading.active_count() == threads


def test_a_new_computation_takes_the_place_of_the_old_one() -> None:
    first, second, background = Watch(), Watch(), Background(threading.RLock())

    async def reader() -> None:
        first.start(background, 1000)
        while len(first.shown) < 2:
            await asyncio.sleep(0)
        second.start(background, 3)
        while busy():
            await asyncio.sleep(0)

    asyncio.run(reader())
    assert (first.shown, second.shown) == ([0, 1], [0, 1, 2])


def test_a_failing_step_is_told_and_ends_the_computation() -> None:
    watch, background = Watch(), Background(threading.RLock())

    def steps() -> Iterator[int]:
        yield 1
        raise RuntimeError("out of memory")

    background.start(steps(), watch.shown.append, watch.failed.append)
    assert watch.shown == [1]
    assert [str(error) for error in watch.failed] == ["out of memory"]


def test_the_failure_of_a_cancelled_computation_is_no_news() -> None:
    watch, background = Watch(), Background(threading.RLock())

    def steps() -> Iterator[int]:
        background.cancel()
        yield 1
        raise AssertionError("not reached")

    background.start(steps(), watch.shown.append, watch.failed.append)
    assert (watch.shown, watch.failed) == ([], [])


def test_a_click_on_another_thread_waits_until_the_state_is_shown() -> None:
    background, order = Background(threading.RLock()), []
    showing, clicked = threading.Event(), threading.Event()

    def show(state: int) -> None:
        order.append(f"show {state}")
        showing.set()
        clicked.wait(60)
        order.append(f"shown {state}")

    def click() -> None:
        showing.wait(60)
        clicked.set()
        background.cancel()
        order.append("cancelled")

    thread = threading.Thread(target=click)
    thread.start()
    background.start(iter(range(3)), show, lambda error: order.append(str(error)))
    thread.join(60)
    assert order == ["show 0", "shown 0", "cancelled"]
