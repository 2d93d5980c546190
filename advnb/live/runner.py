"""A thread that always works on the newest parameters, and what it shows."""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..profiles import usable_cores

Params = dict[str, Any]
REFRESH = 0.12  # seconds between frames of a running job: drawing must not starve the search


@dataclass(frozen=True)
class Frame:
    """One picture of a panel: PNG bytes, what it shows in words, whether the job is complete."""

    params: Params
    png: bytes
    alt: str
    status: str
    complete: bool


_runners: weakref.WeakSet[Runner] = weakref.WeakSet()


class Runner:
    """A daemon thread that turns the newest parameters into frames; older ones are dropped.

    `job(params)` is a generator of frames, a cheap one first; it yields None wherever it may be
    cut short without a picture. The thread starts with the first post and ends in `close`; a
    later post starts another.
    """

    def __init__(
        self,
        job: Callable[[Params], Iterator[Frame | None]],
        show: Callable[[Frame | Exception], None],
    ) -> None:
        self._job, self._show = job, show
        self._news = threading.Condition()
        # one core is the kernel's; a cap that somebody has set stays
        self._threads = max(1, min(torch.get_num_threads(), usable_cores() - 1))
        self._working = threading.Lock()  # a thread that was closed may still finish a frame
        self._pending: Params | None = None
        self._generation = 0  # of the newest post; a frame of an older one is never shown
        self._busy = False
        self._thread: threading.Thread | None = None
        _runners.add(self)

    def post(self, params: Params) -> None:
        """Work on these parameters, now, instead of any others."""
        with self._news:
            self._generation += 1
            self._pending, self._busy = params, True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="advnb panel", daemon=True)
                self._thread.start()
            self._news.notify_all()

    def stop(self) -> bool:
        """Give up the present job; whether there was one."""
        with self._news:
            was, self._busy = self._busy, False
            self._generation += 1
            self._pending = None
            self._news.notify_all()
            return was

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until the newest job is complete or stopped; False if that takes too long."""
        with self._news:
            return self._news.wait_for(lambda: not self._busy, timeout)

    def close(self) -> None:
        """Stop, and let the thread end."""
        self.stop()
        with self._news:
            self._thread = None
            self._news.notify_all()

    def _work(self) -> None:
        torch.set_num_threads(self._threads)
        me = threading.current_thread()
        while True:
            with self._news:
                self._news.wait_for(lambda: self._pending is not None or self._thread is not me)
                if self._thread is not me:
                    return
                params, self._pending, generation = self._pending, None, self._generation
            assert params is not None
            with self._working:
                try:
                    for frame in self._job(params):
                        if not self._publish(frame, generation):
                            break
                except Exception as error:  # a panel shows its errors: a thread's would be lost
                    with contextlib.suppress(Exception):
                        self._publish(error, generation)
            with self._news:
                if generation == self._generation:
                    self._busy = False
                    self._news.notify_all()

    def _publish(self, frame: Frame | Exception | None, generation: int) -> bool:
        """Show a frame unless newer parameters are waiting; whether to go on with the job."""
        with self._news:
            if generation != self._generation:
                return False
            if frame is not None:
                self._show(frame)
            return True


@atexit.register
def _end() -> None:
    """Wait for what the threads are at: one that is inside torch when Python ends aborts it."""
    for runner in list(_runners):
        runner.close()
    for runner in list(_runners):
        runner._working.acquire(timeout=5)
