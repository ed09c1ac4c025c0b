"""A clock that a test sets by hand."""


class Clock:
    """Replaces the module `time` in the code under test; the test sets `now`, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        return self.now
