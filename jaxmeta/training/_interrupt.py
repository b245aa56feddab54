"""Ctrl-C in the midst of training."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def held_interrupt() -> Iterator[Callable[[], bool]]:
    """Holds a first Ctrl-C back, so that what goes on can end and be saved; a second one stops at once.

    Yields:
        A function that tells whether there was one. Nothing is held where Python would not raise `KeyboardInterrupt`
        at Ctrl-C: outside the main thread, and where another has taken charge of the signal.
    """
    came = False

    def hold(number: int, frame: Any) -> None:
        nonlocal came
        if came:
            signal.default_int_handler(number, frame)
        came = True
        print("\ninterrupted: stopping after these steps, to save them; once more to stop at once", file=sys.stderr)

    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
