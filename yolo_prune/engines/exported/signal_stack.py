"""Keeps OpenVINO from leaving a freed signal stack behind, in which the next Ctrl-C would crash the process."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """`stack_t` of sigaltstack(2) on Linux."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def keeping_signal_stack() -> Iterator[None]:
    """Run a block that makes OpenVINO cores, and give the thread the signal stack back that it had before.

    Each core sets a stack of its own, and at its end the one that it found. Two cores that do not end in the opposite order of
    their making so leave a stack that is freed.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    library, before = ctypes.CDLL(None), _Stack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)
