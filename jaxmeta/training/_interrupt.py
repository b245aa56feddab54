"""Ctrl-C in the midst of training."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def held_interrupt() -> Iterator[Callable[[], bool]]:
    """Holds a first Ctrl-C back, so that what goes on can end and be saved.

    A second one raises `KeyboardInterrupt` as soon as Python hears of it, which is not while a compiled program runs.

    Yields:
        A function that tells whether there was one. Nothing is held where Python would not raise `KeyboardInterrupt`
        at Ctrl-C: outside the main thread, and where another has taken charge of the signal.

    Raises:
        KeyboardInterrupt: there was one, and nothing else has been raised since.
    """
    came = False

    def hold(number: int, frame: Any) -> None:
        nonlocal came
        if came:
            signal.default_int_handler(number, frame)
        came = True
        print("\ninterrupted: stopping after these steps, to save them", file=sys.stderr)

    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt
