"""The end of an API process: it serves on for a while after SIGTERM, so that no request finds a closed port."""

from __future__ import annotations

import fcntl
import signal
import struct
import termios
import time
from types import FrameType

import uvicorn

from inference.errors import Unavailable
from inference.logs import get_logger

log = get_logger(__name__)

#: fraction of the drain after which answers also ask their clients to hang up
_CLOSING_AFTER = 0.5


class Drain:
    """Tells whether this process was told to stop, and whether its connections end with their next answer.

    `seconds`: the setting `[api] drain`.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        #: instant of SIGTERM (`time.monotonic`)
        self._begun_at: float | None = None
        #: each answer ends its connection
        self.is_closing = False

    def begin(self, *, at_once: bool = False) -> None:
        """Begin to drain. `at_once`: skip it, because nobody routes requests by the readiness of this process."""
        if at_once:
            self._seconds = 0
        self._begun_at = time.monotonic()

    def is_over(self) -> bool:
        """Return whether the process may close its port now. Call it several times a second."""
        if self._begun_at is None:
            return False
        passed = time.monotonic() - self._begun_at
        if passed >= self._seconds * _CLOSING_AFTER:
            self.is_closing = True
        return passed >= self._seconds

    def require_none(self) -> None:
        """Raise if the process was told to stop.

        Raises:
            Unavailable: it was.
        """
        if self._begun_at is not None:
            raise Unavailable("this process is stopping: send requests to another one")


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which serves on during the drain. A second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, drain: Drain) -> None:
        super().__init__(config)
        self._drain = drain
        self._is_told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop: after the drain by SIGTERM, which platforms send; now by Ctrl-C. The second time, die."""
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        super().handle_exit(sig, frame)
        self._drain.begin(at_once=sig != signal.SIGTERM)

    async def on_tick(self, counter: int) -> bool:
        """Return whether to close the port."""
        told = await super().on_tick(counter)
        if told and not self._is_told:
            self._is_told = True
            log.info("api.drains")
        return told and self._drain.is_over()


def has_unread_bytes(descriptor: int) -> bool:
    """Return whether a socket has received bytes that nobody has read yet."""
    size = fcntl.ioctl(descriptor, termios.FIONREAD, struct.pack("i", 0))
    return bool(struct.unpack("i", size)[0])
