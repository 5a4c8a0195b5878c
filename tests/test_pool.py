"""The pool of slots: results and effort belong to the job, memory to the slots, and no job is lost."""

import pytest
import torch
from accelerator import DEVICE, StandIn

from nbsupport import pool


class Countdowns:
    """Job i adds `value[i]` to its total at each step and is finished after `lengths[i]` steps."""

    def __init__(self, lengths, values, order=None):
        self.order = torch.arange(len(lengths)) if order is None else order
        self.lengths, self.values = lengths, values
        self.totals = torch.full((len(lengths),), torch.nan)
        self.steps = torch.zeros(len(lengths), dtype=torch.int64)  # steps spent on each job
        self.finishes = torch.zeros(len(lengths), dtype=torch.int64)
        self.rows = []  # rows in each step
        self.started = []

    def start(self, index):
        job = self.order[index]
        self.started += index.tolist()
        return {"job": job, "left": self.lengths[job], "total": torch.zeros(len(job))}

    def step(self, state):
        self.rows.append(len(state["job"]))
        self.steps[state["job"]] += 1
        working = state["left"] > 0
        state["total"] += self.values[state["job"]] * working
        state["left"] -= working.long()

    def done(self, state):
        return state["left"] == 0

    def finish(self, state):
        assert bool((state["left"] == 0).all())
        self.totals[state["job"]] = state["total"]
        self.finishes[state["job"]] += 1


def countdowns(count, *, order=None, seed=0, longest=30):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (count,), generator=generator)
    return Countdowns(lengths, torch.randint(1, 100, (count,), generator=generator).float(), order)


def drain(jobs, *, slots, every):
    pool.drain(jobs, len(jobs.lengths), slots=slots, every=every, device=torch.device("cpu"))
    return jobs


@pytest.mark.parametrize("every", [1, 3, 10, 50])
@pytest.mark.parametrize("slots", [1, 2, 7, 40, 41])
def test_every_job_finishes_once_with_its_own_result(slots, every):
    jobs = drain(countdowns(40), slots=slots, every=every)
    assert jobs.totals.equal(jobs.lengths * jobs.values)
    assert jobs.finishes.eq(1).all()
    assert jobs.started == list(range(40))


@pytest.mark.parametrize("every", [1, 3, 10, 50])
@pytest.mark.parametrize("slots", [1, 7, 41])
def test_the_effort_on_a_job_does_not_depend_on_its_neighbours(slots, every):
    jobs = drain(countdowns(40), slots=slots, every=every)
    expected = every * (jobs.lengths / every).ceil().clamp(min=1)  # whole rounds, one at least
    assert jobs.steps.equal(expected.long())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_of_the_jobs_does_not_matter(seed):
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    jobs, shuffled = drain(countdowns(40), slots=7, every=3), drain(countdowns(40, order=order), slots=7, every=3)
    assert shuffled.totals.equal(jobs.totals)
    assert shuffled.steps.equal(jobs.steps)


@pytest.mark.parametrize("slots", [1, 7, 64])
def test_rows_never_exceed_the_slots_and_fill_them_while_jobs_wait(slots):
    jobs = countdowns(40)
    waiting = []
    step = jobs.step

    def watched(state):
        waiting.append(len(jobs.started) < 40)
        step(state)

    jobs.step = watched
    drain(jobs, slots=slots, every=3)
    assert max(jobs.rows) == min(slots, 40)
    assert all(rows == slots for rows, some_wait in zip(jobs.rows, waiting, strict=True) if some_wait)


def test_no_job_needs_no_step():
    jobs = drain(countdowns(0), slots=4, every=3)
    assert jobs.rows == []
    assert jobs.started == []


@pytest.mark.parametrize("name", ["slots", "every"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_a_pool_without_slots_or_steps_is_refused(name, value):
    with pytest.raises(ValueError, match=f"expected {name} as a whole number of at least 1, got {value}"):
        drain(countdowns(3), **{"slots": 2, "every": 2, name: value})


def test_rows_are_picked_by_index():
    state = {"a": torch.arange(4), "b": torch.arange(8).view(4, 2)}
    picked = pool.rows(state, torch.tensor([3, 0]))
    assert picked["a"].tolist() == [3, 0]
    assert picked["b"].tolist() == [[6, 7], [0, 1]]


class OnDevice(Countdowns):
    """The same jobs on the stand-in, with many more entries and no look of their own at the numbers."""

    def __init__(self, jobs):
        super().__init__(jobs.lengths, jobs.values)
        for name in ("order", "lengths", "values", "totals", "steps", "finishes"):
            setattr(self, name, getattr(self, name).to(DEVICE))
        self.begun = 0

    def start(self, index):
        self.begun += 1
        job = self.order[index]
        more = {f"entry {i}": job for i in range(20)}
        return {"job": job, "left": self.lengths[job], "total": torch.zeros(len(job), device=DEVICE), **more}

    def finish(self, state):
        self.totals[state["job"]] = state["total"]
        self.finishes[state["job"]] += 1


@pytest.mark.parametrize("every", [1, 3, 10])
@pytest.mark.parametrize("slots", [1, 7, 41])
def test_the_host_waits_once_a_look_however_many_entries_a_state_has(slots, every):
    expected = drain(countdowns(40), slots=slots, every=every)
    with StandIn() as standin:
        jobs = OnDevice(countdowns(40))
        standin.waits.clear()
        pool.drain(jobs, 40, slots=slots, every=every, device=DEVICE)
    assert [wait.within for wait in standin.waits] == ["drain"] * (len(jobs.rows) // every)
    assert jobs.rows == expected.rows
    assert jobs.totals.host.equal(expected.totals)
    assert jobs.finishes.host.equal(expected.finishes)
