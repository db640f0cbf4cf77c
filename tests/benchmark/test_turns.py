import pytest

from basis_sharing.benchmark.turns import paired_speed, spread, take_turns


class Clock:
    """A clock that only work moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Work:
    """Takes ``seconds`` per turn, times whatever the machine's load is at that turn."""

    def __init__(self, name, seconds, clock, log, load=lambda turn: 1.0):
        self.name, self.seconds, self.clock, self.log, self.load, self.done = name, seconds, clock, log, load, 0

    def prepare(self):
        self.log.append(f"prepare {self.name}")
        self.clock.now += 100.0  # must not be timed

    def turn(self):
        self.log.append(self.name)
        self.clock.now += self.seconds * self.load(self.done)
        self.done += 1


def test_contestants_alternate_and_the_order_turns_round():
    clock, log = Clock(), []
    times = take_turns([Work("a", 2.0, clock, log), Work("b", 1.0, clock, log)], 2, 3, clock=clock)
    prepared = ["prepare a", "prepare b"]
    assert log == [*prepared, *"ababab", *prepared, *"ababab", *prepared, *"bababa"]
    assert times == [(2.0, 2.0), (1.0, 1.0)]


def test_the_warm_up_does_not_count():
    clock, log = Clock(), []
    times = take_turns([Work("a", 1.0, clock, log, lambda turn: 50.0 if turn < 4 else 1.0)], 3, 4, clock=clock)
    assert times == [(1.0, 1.0, 1.0)]


@pytest.mark.parametrize(("seconds", "turns"), [(5.0, 5), (0.25, 6), (0.22, 7), (0.001, 32)])
def test_short_turns_are_repeated_until_they_fill_some_time(seconds, turns):
    clock, log = Clock(), []
    take_turns([Work("a", seconds, clock, log), Work("b", seconds / 2, clock, log)], 1, clock=clock)
    assert log.count("a") == log.count("b") == 5 + turns  # the warm-up has five


def test_the_first_turn_does_not_decide_how_many_follow():
    clock, log = Clock(), []
    take_turns([Work("a", 0.25, clock, log, lambda turn: 1000.0 if turn == 0 else 1.0)], 1, clock=clock)
    assert log.count("a") == 5 + 6


def test_every_repeat_is_reported():
    clock, log, seen = Clock(), [], []
    take_turns([Work("a", 1.0, clock, log)], 4, 1, clock=clock, repeated=lambda: seen.append(len(log)))
    assert len(seen) == 5


def test_load_that_comes_and_goes_cancels_in_paired_quotients():
    clock, log = Clock(), []

    def load(turn):
        return 1.0 + 10.0 * (turn // 4 % 3)  # another level of load in every repeat

    slow, fast = Work("a", 2.0, clock, log, load), Work("b", 1.6, clock, log, load)
    first, other = take_turns([slow, fast], 6, 4, clock=clock)
    assert max(first) > 10 * min(first)
    speed = paired_speed(first, other)
    assert (speed.median, speed.lower, speed.upper) == pytest.approx((1.25, 1.25, 1.25))


def test_quotients_are_taken_repeat_by_repeat():
    speed = paired_speed([1.0, 10.0, 3.0], [0.5, 10.0, 1.0])
    assert (speed.median, speed.lower, speed.upper) == (2.0, 1.5, 2.5)


def test_quartiles():
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]).model_dump() == {"median": 3.0, "lower": 2.0, "upper": 4.0}
    assert spread([7.0]).model_dump() == {"median": 7.0, "lower": 7.0, "upper": 7.0}
