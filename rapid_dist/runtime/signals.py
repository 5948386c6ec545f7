"""SIGTERM is a notice to leave: a loop writes a checkpoint first, all else stops as by Ctrl-C."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Notice:
    """Whether this process was told to leave.

    A loop that asks between its steps is let finish the one that it is at, and then has the time
    for a checkpoint. Outside of such a loop a notice interrupts at once.
    """

    def __init__(self) -> None:
        self.is_given = False
        self._is_heard = False  # By a loop that will ask again when its step is done.

    @contextmanager
    def heard(self) -> Iterator[None]:
        """While this lasts, a notice waits until somebody asks; from the first time on."""
        try:
            yield
        finally:
            self._is_heard = False
        if self.is_given:  # With the loop's last step.
            _interrupt()

    def asked(self) -> Callable[[], None] | None:
        """Returns what ends the loop when its checkpoint is written, once there was a notice.

        A loop that was told and goes on all the same, having no checkpoints, is interrupted.
        """
        if self.is_given:
            if not self._is_heard:
                _interrupt()
            self._is_heard = False
            return _interrupt
        self._is_heard = True
        return None

    def hear(self) -> None:
        """Says that somebody will look at ``is_given`` again soon."""
        if not self.is_given:
            self._is_heard = True

    def take(self) -> None:
        """Takes a notice; interrupts unless a loop will ask."""
        self.is_given = True
        if not self._is_heard:
            _interrupt()


def _interrupt() -> None:
    raise KeyboardInterrupt


@contextmanager
def stop_on_sigterm(notice: Notice | None = None) -> Iterator[None]:
    """Gives ``notice`` at the first SIGTERM, or interrupts where there is none; a second one kills.

    Elsewhere than in the main thread Python lets nobody listen, and nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told = notice or Notice()

    def take(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        told.take()

    before = signal.signal(signal.SIGTERM, take)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
