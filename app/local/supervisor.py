"""Starts a list of programs in order, keeps each of them alive, and stops them all in order."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence

import zmq
from circus.arbiter import Arbiter
from tornado.ioloop import IOLoop

from app.local.board import Board
from app.local.output import Lines, Output
from app.local.programs import Program
from app.local.watching import ProgramWatcher
from inference.errors import Unavailable
from inference.failures import Failures

#: seconds between two looks: a death is noticed within this time
CHECK_S = 0.3
#: seconds that a program may take until it is ready; a Redis with much data loads for a while
READY_WITHIN_S = 300.0
#: seconds after which the table shows who is not ready
SLOW_START_S = 60.0
#: how often a program is started that is killed before it is ready
_TRIES = 3
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Runs programs until it is told to stop. Make it inside a running event loop, on the main thread."""

    def __init__(self, programs: Sequence[Program], output: Output) -> None:
        # circus tells every start and stop; what matters is reported below
        logging.getLogger("circus").setLevel(logging.WARNING)
        self._output = output
        self._board = Board(programs, output.say)
        self._context = zmq.Context()
        self.watchers = [ProgramWatcher(each, Lines(each.name, output), self._board) for each in programs]
        # circus insists on control sockets: inside the process they are nobody's port and nobody's file
        self._arbiter = Arbiter(
            list(self.watchers), "inproc://control", "inproc://events",
            check_delay=CHECK_S, context=self._context, loop=IOLoop.current(),
        )  # fmt: skip
        # circus drops a signal that comes while it is busy restarting something, so its handlers go
        self._arbiter.ctrl.sys_hdl.stop()
        self._told_to_stop = asyncio.Event()
        self._stops_asked = 0

    async def run(self) -> None:
        """Start everything, keep it running until SIGINT, SIGTERM or SIGHUP, stop everything.

        A second signal kills what is still stopping, but for what stops last; a third kills that too.

        Raises:
            Unavailable: a program that others wait for ended before it was ready; all others are stopped.
        """
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self.stop_soon)
        slow_start = loop.call_later(SLOW_START_S, self._board.tell_if_waiting)
        looks = asyncio.create_task(self._look_who_is_ready())
        try:
            await self._start()
            await self._told_to_stop.wait()
        finally:
            slow_start.cancel()
            looks.cancel()
            await self._stop()
            for number in _STOP_SIGNALS:
                loop.remove_signal_handler(number)

    def stop_soon(self) -> None:
        """Begin to stop; when it has begun already, kill."""
        self._stops_asked += 1
        if self._stops_asked == 1:
            self._output.say("stopping: workers finish what they have in hand; Ctrl-C again kills them")
        else:
            self._output.say("killing what still runs; a chunk cut off here is scored again at the next start")
            for watcher in self.watchers:
                # its data is in order only when it ends in order
                if self._stops_asked > 2 or not watcher.program.stops_last:
                    watcher.kill_now()
        self._told_to_stop.set()

    async def _start(self) -> None:
        await self._arbiter.start()
        for watcher in self.watchers:
            if self._told_to_stop.is_set():
                return
            await watcher._start()  # the arbiter's own way of starting one
            if watcher.is_stopped():
                raise Unavailable(f"{watcher.name} cannot be started on this machine")
            await self._until_ready(watcher)

    async def _until_ready(self, watcher: ProgramWatcher) -> None:
        program = watcher.program
        if program.is_ready is None:
            return
        end = asyncio.get_running_loop().time() + READY_WITHIN_S
        while not self._told_to_stop.is_set() and not await asyncio.to_thread(program.is_ready):
            watcher.reap_dead()
            last_lines = list(watcher.lines.last)
            # one that was killed is started again; one that gave up would do so for ever
            if watcher.ended_by_itself or watcher.deaths >= _TRIES:
                raise Unavailable(program.explain(last_lines) if program.explain else f"{program.name} does not start")
            if asyncio.get_running_loop().time() > end:
                raise Unavailable(f"{program.name} is not ready after {READY_WITHIN_S:g} s")
            await asyncio.sleep(0.05)

    async def _stop(self) -> None:
        self._told_to_stop.set()
        self._arbiter.ctrl.caller.stop()  # no more looks: nothing is started again from here on
        while self._arbiter._exclusive_running_command is not None:  # noqa: ASYNC110 - circus offers no event
            await asyncio.sleep(0.02)
        for last in (False, True):
            await asyncio.gather(*(each._stop(True) for each in self.watchers if each.program.stops_last is last))
        await self._arbiter.stop()
        await asyncio.sleep(0)  # the arbiter closes its sockets in the loop's next turn
        self._context.destroy(linger=0)

    async def _look_who_is_ready(self) -> None:
        """Ask those that can be asked, at their first start and after each death."""
        failures = Failures(__name__, "look")
        while True:
            for watcher in self.watchers:
                is_ready = watcher.program.is_ready
                with failures.kept_here(watcher.name, program=watcher.name):
                    if is_ready and self._board.is_starting(watcher.name) and await asyncio.to_thread(is_ready):
                        self._board.ready(watcher.name)
            await asyncio.sleep(CHECK_S)
