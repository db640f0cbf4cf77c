import math
import random
import statistics

import pytest

from basis_sharing.benchmark.turns import Times, paired_speed, spread, take_turns, uncertainty


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
        took = self.seconds * self.load(self.done)
        self.clock.now += took
        self.done += 1
        return took


def seconds(*arguments, **options):
    return [times.seconds for times in take_turns(*arguments, **options)]


def test_contestants_alternate_and_the_order_turns_round():
    clock, log = Clock(), []
    times = seconds([Work("a", 2.0, clock, log), Work("b", 1.0, clock, log)], 2, 3, clock=clock)
    prepared = ["prepare a", "prepare b"]
    assert log == [*prepared, *"ababab", *prepared, *"ababab", *reversed(prepared), *"bababa"]
    assert times == [(2.0, 2.0), (1.0, 1.0)]


def test_the_warm_up_is_told_apart():
    clock, log = Clock(), []
    slow = Work("a", 1.0, clock, log, lambda turn: 50.0 if turn < 4 else 1.0)
    times = take_turns([slow, Work("b", 2.0, clock, log)], 3, 4, clock=clock)
    assert times == [Times((1.0, 1.0, 1.0), 100.0 + 4 * 50.0), Times((2.0, 2.0, 2.0), 100.0 + 4 * 2.0)]


@pytest.mark.parametrize(("slow", "turns"), [(5.0, 5), (0.25, 6), (0.22, 7), (0.001, 32)])
def test_short_turns_are_repeated_until_they_fill_some_time(slow, turns):
    clock, log = Clock(), []
    take_turns([Work("a", slow, clock, log), Work("b", slow / 2, clock, log)], 1, clock=clock)
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
    first, other = seconds([slow, fast], 6, 4, clock=clock)
    assert max(first) > 10 * min(first)
    speed = paired_speed(first, other)
    assert (speed.median, speed.lower, speed.upper) == pytest.approx((1.25, 1.25, 1.25))


def test_quotients_are_taken_repeat_by_repeat():
    speed = paired_speed([1.0, 10.0, 3.0], [0.5, 10.0, 1.0])
    assert (speed.median, speed.lower, speed.upper) == (2.0, 1.5, 2.5)


def test_quartiles():
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]).model_dump() == {"median": 3.0, "lower": 2.0, "upper": 4.0}
    assert spread([7.0]).model_dump() == {"median": 7.0, "lower": 7.0, "upper": 7.0}


def test_repeats_go_on_until_a_speed_is_known():
    clock = Clock()
    steady = [Work("a", 2.0, clock, []), Work("b", 1.0, clock, [])]
    assert len(seconds(steady, 3, 1, most=12, precision=0.02, clock=clock)[0]) == 3

    def settling(turn):
        return 3.0 if turn in (1, 3) else 1.0

    noisy = [Work("a", 2.0, clock, []), Work("b", 1.0, clock, [], settling)]
    times = seconds(noisy, 3, 1, most=40, precision=0.02, clock=clock)
    assert 6 < len(times[0]) < 40
    assert paired_speed(*times).median == 2.0
    never = [Work("a", 2.0, clock, []), Work("b", 1.0, clock, [], lambda turn: 1.0 + turn % 3)]
    assert len(seconds(never, 3, 1, most=12, precision=0.02, clock=clock)[0]) == 12


def test_the_uncertainty_is_that_of_a_median():
    generator = random.Random(0)

    def sample():
        return [generator.gauss(1.0, 0.05) for _ in range(25)]

    ones = [1.0] * 25
    medians = [paired_speed(sample(), ones).median for _ in range(2000)]
    told = [uncertainty(sample(), ones) for _ in range(2000)]
    assert statistics.mean(told) == pytest.approx(2 * statistics.stdev(medians), rel=0.1)
    assert uncertainty([1.0], [1.0]) == math.inf
