"""Who has what to do: loads that are taken over, without a single worker."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError, TaskCancelledError

from fedsim.engine import crew as crews
from fedsim.engine import ray_start
from fedsim.engine.actor import stay_on
from fedsim.engine.crew import Crew


@dataclass(eq=False)
class Work:
    """A load that notes what becomes of it."""

    name: str
    seconds: float = 0.1
    shareable: bool = True
    attempts: int = 0
    answered: float = 0.0
    answers: list[Any] = field(default_factory=list)

    def send(self, actor: Any) -> str:
        """Return a reference that says who has it."""
        return f"{self.name} at {actor.number}"

    def accept(self, answer: Any, worker: int) -> None:
        """Note the answer."""
        self.answers.append((answer, worker))

    def split(self) -> list[Work]:
        """Return it as it is."""
        return [self]

    def give_up(self, reason: str) -> None:
        """Note the reason."""
        self.answers.append(reason)


class Actor:
    """Stands for a Ray actor: it is there at once, and does nothing."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.ready = type("Ready", (), {"remote": staticmethod(lambda: f"ready {number}")})


@dataclass
class Answers:
    """What Ray would say: by reference, an answer or an error."""

    by_reference: dict[str, Any] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Answer in the place of Ray."""
    there = Answers()

    def get(reference: str) -> Any:
        if reference.startswith("ready"):
            return crews.Ready(offers_cohorts=True)
        answer = there.by_reference.pop(reference)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def wait(references: list[str], **_: Any) -> tuple[list[str], list[str]]:
        ready = [r for r in references if r.startswith("ready") or r in there.by_reference]
        return ready[:1], ready[1:]

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "cancel", there.cancelled.append)
    monkeypatch.setattr(ray, "kill", lambda actor: there.ended.append(actor.number))
    return there


@pytest.fixture
def start(answers: Answers) -> Callable[[int], Crew]:
    """Return a function that starts so many workers."""

    def begin(count: int) -> Crew:
        crew = Crew(Actor, count)
        for _ in range(count):
            crew.step(0.0)
        assert all(handle.at_work for handle in crew.handles)
        return crew

    return begin


def taken_over(crew: Crew, answers: Answers) -> tuple[Work, Work, Work]:
    """Let worker 1 take over what waits behind a load of worker 0."""
    first, other, waits = Work("first"), Work("other"), Work("waits")
    crew.add([first, other, waits])
    answers.by_reference["other at 1"] = "done"
    crew.step(0.0)
    assert other.answers == [("done", 1)]
    assert answers.cancelled == ["waits at 0"]
    assert list(crew.handles[1].loads.values()) == [waits]
    return first, other, waits


def test_the_first_answer_counts(start: Callable[[int], Crew], answers: Answers) -> None:
    crew = start(2)
    first, _, waits = taken_over(crew, answers)
    answers.by_reference["waits at 0"] = "early"  # it had begun all the same
    crew.step(0.0)
    answers.by_reference["waits at 1"] = "late"
    crew.step(0.0)
    assert waits.answers == [("early", 0)]
    assert first.answers == []
    assert not crew.handles[1].loads


def test_what_was_cancelled_is_left_to_whoever_has_it(
    start: Callable[[int], Crew], answers: Answers
) -> None:
    crew = start(2)
    _, _, waits = taken_over(crew, answers)
    answers.by_reference["waits at 0"] = TaskCancelledError()
    crew.step(0.0)
    assert (waits.answers, len(crew.queue)) == ([], 0)
    answers.by_reference["waits at 1"] = "done"
    crew.step(0.0)
    assert waits.answers == [("done", 1)]


def test_what_was_cancelled_is_not_lost_with_who_took_it(
    start: Callable[[int], Crew], answers: Answers
) -> None:
    """The second worker dies of something else, then the first one's call turns out cancelled."""
    crew = start(2)
    _, _, waits = taken_over(crew, answers)
    answers.by_reference["waits at 1"] = RayActorError()
    crew.step(0.0)
    assert waits in crew.handles[0].loads.values()
    answers.by_reference["waits at 0"] = TaskCancelledError()
    for _ in range(3):
        crew.step(0.0)
    assert waits in [load for handle in crew.handles for load in handle.loads.values()]


def test_whoever_has_what_is_given_up_is_ended(
    start: Callable[[int], Crew], answers: Answers
) -> None:
    crew = start(2)
    first, _, waits = taken_over(crew, answers)
    crew.reduce(lambda load: [] if load is waits else [load])
    assert sorted(answers.ended) == [0, 1]
    left = [load for handle in crew.handles for load in handle.loads.values()]
    assert [*left, *crew.queue] == [first]


def test_only_what_may_run_twice_is_taken_over(
    start: Callable[[int], Crew], answers: Answers
) -> None:
    crew = start(2)
    crew.add([Work(name, shareable=False) for name in ("first", "other", "waits")])
    answers.by_reference["other at 1"] = "done"
    crew.step(0.0)
    assert answers.cancelled == []


@pytest.mark.parametrize(
    ("workers", "nodes", "expected"),
    [(2, 1, {0: 4, 1: 7}), (1, 1, {}), (3, 1, {}), (2, 2, {})],
)
def test_workers_have_cores_of_their_own_where_there_is_one_for_each(
    workers: int, nodes: int, expected: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 4}, raising=False)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}] * nodes + [{"Alive": False}])
    assert ray_start.own_cores(workers) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone pins")
def test_a_process_stays_on_a_core_that_it_has() -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    try:
        stay_on(max(before) + 1000)
        assert os.sched_getaffinity(0) == before
        stay_on(core)
        threads = map(int, os.listdir("/proc/self/task"))
        assert all(os.sched_getaffinity(thread) == {core} for thread in threads)
    finally:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), before)
