"""How many threads a step runs on, found by trying, all the time.

A second thread shortens products of milliseconds, does nothing for operations of ten microseconds, and makes a step up
to twenty times as long while something else has its core: the threads of an operation wait for the last of them. What
else wants the cores (the service itself, its clients on the same machine, other programs) changes from second to
second, so the numbers of threads are timed as they are used, and the slower ones tried again now and then. A step gives
the same numbers on any of them, up to rounding. This module knows no model.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from inference_svc.engines.rows.adapters import Mix
from inference_svc.engines.rows.cores import Cores
from inference_svc.engines.rows.forward import Forward, Prefill

TRY_AGAIN = 32
"""A number of threads that was r times as slow as the best is tried again after so many times r steps, so that trying
costs a thirtieth at most in the long run. If it then was the quicker one, the next step is a try as well: one bad
moment must not keep the steps of minutes on the wrong number."""
TRY_SOON = 4
"""Nor must a bad start: at first the pause is so many times r steps, and one more with each `TRY_SOON_FOR` steps, but
not where r is above `MOST_AT_ONCE`."""
TRY_SOON_FOR = 8
LONGEST_PAUSE = 2048
"""But after so many steps at the latest."""
LONG_STEP = 0.05
"""Steps that take more seconds on half of the threads are never tried on one."""
NEWEST = 0.06
"""Weight of the newest time in the average of the number in use. A step that something else has disturbed, an event
loop that passes on 32 messages, say, must not by itself make the next `TRY_AGAIN` steps run on one thread."""
NEWEST_TRIED = 0.4
"""The same for a number that is tried again: there are few such times, and the average is old."""
MOST_AT_ONCE = 4.0
"""A time counts as so many times the average of its number at most, however long the step was."""

Result = TypeVar("Result")


class Pace:
    """Times of one kind of step on different numbers of threads.

    Args:
        most: threads there are.
    """

    def __init__(self, most: int) -> None:
        self._times: dict[int, float] = {}
        self._untried = [most, most, max(1, most // 2), max(1, most // 2)]
        self._most = most
        self._steps = 0
        self._pause: dict[int, int] = {}

    def choose(self) -> int:
        """Threads for the next step."""
        if self._untried:
            return self._untried[0]
        best = min(self._times, key=self._times.__getitem__)
        for threads in self._pause:
            if threads != best:
                self._pause[threads] -= 1
                if self._pause[threads] <= 0:
                    return threads
        return best

    def took(self, threads: int, seconds: float, size: int = 1) -> None:
        """What the step took, and how many rows or tokens it was about."""
        pace = seconds / size
        quicker = False
        if self._untried:
            self._untried.pop(0)
            # The first step of a size compiles kernels, and either may be disturbed.
            self._times[threads] = min(pace, self._times.get(threads, pace))
            if not self._untried and 1 not in self._times and self._times[threads] * size < LONG_STEP:
                self._untried = [1, 1]
        else:
            average, best = self._times[threads], min(self._times.values())
            quicker = pace < best < average
            weight = NEWEST if average == best else NEWEST_TRIED
            self._times[threads] += weight * (min(pace, MOST_AT_ONCE * average) - average)
        self._steps += 1
        ratio = self._times[threads] / min(self._times.values())
        after = TRY_AGAIN if ratio > MOST_AT_ONCE else min(TRY_AGAIN, TRY_SOON + self._steps // TRY_SOON_FOR)
        self._pause[threads] = 1 if quicker else min(LONGEST_PAUSE, round(after * ratio))


class Threaded:
    """A forward whose steps run on as many of torch's threads as suit them at the time.

    Args:
        forward: on a CPU.
        most: threads to use at most.
        cores: that the threads of steps on all of them are kept on; None for nowhere.
    """

    def __init__(self, forward: Forward, most: int, cores: Cores | None = None) -> None:
        self.forward, self._most, self._cores = forward, most, cores
        self._paces: dict[tuple[str, int], Pace] = {}

    def decode(self, tokens: Tensor, positions: Tensor, width: int, mix: Mix | None) -> Tensor:
        """See `Forward.decode`."""
        return self._timed("decode", len(tokens), lambda: self.forward.decode(tokens, positions, width, mix))

    def prefill(self, chunk: Prefill) -> Tensor:
        """See `Forward.prefill`."""
        return self._timed("prefill", chunk.tokens.numel(), lambda: self.forward.prefill(chunk))

    def _timed(self, kind: str, size: int, step: Callable[[], Result]) -> Result:
        """Run a step; those of a kind and about one size share their times."""
        key = kind, size.bit_length()
        pace = self._paces.get(key)
        if pace is None:
            pace = self._paces[key] = Pace(self._most)
        threads = pace.choose()
        began = perf_counter()
        torch.set_num_threads(threads)
        if self._cores is not None:
            if threads == self._most:
                self._cores.keep()
            else:
                self._cores.let_go()
        result = step()
        pace.took(threads, perf_counter() - began, size)
        return result
