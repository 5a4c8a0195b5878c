"""A watch over a kernel: it gives up one that will never answer, or takes too much memory, not one that takes long."""

from collections.abc import Callable

SILENT = 120  # looks in a row, about a second apart, at which the kernel's heartbeat gave no answer
IDLE = 1800  # looks in a row in which the kernel has spent less than a second of a processor


class Watch:
    """A watch over one kernel, which `gives_up` asks about it once a second; `why` says what was wrong.

    Looks are counted, not seconds, so that the time in which a whole machine sleeps is none. A thread outside of Python
    answers the heartbeat, also while a cell computes; it does not in a process that was stopped. One that answers but
    computes nothing for half an hour, such as two threads that wait for each other, will not go on either.

    Parameters
    ----------
    memory : int, optional
        Bytes that the kernel may hold, without the files that are mapped into its memory. None: any number.
    cancelled : callable
        Returns whether nobody waits for the notebook any more.
    """

    def __init__(self, *, memory: int | None = None, cancelled: Callable[[], bool] = lambda: False) -> None:
        self.memory, self.cancelled = memory, cancelled
        self.why = ""
        self._silent = self._idle = 0
        self._spent = 0.0

    def gives_up(self, pid: int, *, beats: bool) -> bool:
        """Return whether to kill kernel `pid`, whose heartbeat was answered or not."""
        import psutil

        try:
            process = psutil.Process(pid)
            used, times = process.memory_info(), process.cpu_times()
        except psutil.Error:  # it has ended by itself
            return False
        held, spent = used.rss - getattr(used, "shared", 0), times.user + times.system
        self._silent = 0 if beats else self._silent + 1
        if spent < self._spent + 1:
            self._idle += 1
        else:
            self._idle, self._spent = 0, spent
        if self.cancelled():
            self.why = "nobody waits for it any more"
        elif self.memory is not None and held > self.memory:
            self.why = f"the kernel held {held / 2**30:.1f} GB of memory, its worker has {self.memory / 2**30:.1f} GB"
        elif self._silent >= SILENT:
            self.why = f"the kernel did not answer for {SILENT} seconds: it was stopped, or its machine is overloaded"
        elif self._idle >= IDLE:
            self.why = f"the kernel computed nothing for {IDLE // 60} minutes: it waits for what does not come"
        return bool(self.why)
