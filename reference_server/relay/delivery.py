"""The relay: claims events, has them delivered by threads, marks what came of them, until it is stopped.

One thread talks to the database; each of the others makes one outside call at a time. In a loop:
  1. mark what has been finished, all of it in one statement;
  2. claim as many events as there are idle threads, so what is claimed is also begun: nothing waits in a
     queue while its lease runs out;
  3. wait until a call ends, a hint comes (NOTIFY), or the time to poll has come. The hint only saves time.

A lost connection loses nothing: outcomes are kept and marked on the next one, under the same lease token. If
the first mark had been committed after all, or another relay has claimed the event since, the second does
nothing.
"""

from __future__ import annotations

import logging
import select
import socket
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue

import psycopg

from reference_server.relay.backoff import Backoff
from reference_server.relay.event import Event, Handler, NotDelivered, Outcome, error_text
from reference_server.relay.handlers import handler_of
from reference_server.relay.outbox import Outbox

RECONNECT_S = 0.25

log = logging.getLogger("reference_server.relay")


class Relay:
    """One relay; `stop` may be called from a signal handler, everything else by one thread."""

    def __init__(
        self,
        outbox: Outbox,
        handlers: Mapping[str, Handler],
        *,
        workers: int,
        lease_s: float,
        poll_s: float,
        attempts_max: int,
        backoff: Backoff,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._outbox = outbox
        self._handlers = handlers
        self._workers = workers
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._attempts_max = attempts_max
        self._backoff = backoff
        self._stopping = False
        self._in_flight = 0
        self._finished: SimpleQueue[tuple[Event, Future[None]]] = SimpleQueue()
        self._unmarked: list[Outcome] = []
        self._waker, self._wake = socket.socketpair()
        self._waker.setblocking(False)
        self._wake.setblocking(False)

    @property
    def wake_fd(self) -> int:
        """A byte written here ends the wait."""
        return self._wake.fileno()

    def stop(self) -> None:
        """Claim no more; `run` returns when everything in flight is finished and marked."""
        self._stopping = True

    def run(self) -> None:
        """Relay until stopped; a database that is away is waited for."""
        with ThreadPoolExecutor(self._workers, thread_name_prefix="handler") as threads:
            while True:
                try:
                    self._mark()
                    if self._stopping and not self._in_flight and not self._unmarked:
                        return
                    claimed = self._claim(threads)
                except psycopg.Error as error:
                    log.warning("the database is away: %s", error_text(error))
                    self._outbox.disconnect()
                    self._wait(RECONNECT_S, watch_database=False)
                else:
                    if not self._outbox.hinted or not claimed:
                        self._wait(self._poll_s, watch_database=claimed)

    def _claim(self, threads: ThreadPoolExecutor) -> bool:
        """Begin as many events as there are idle threads; false when there was none or no more is wanted."""
        idle = self._workers - self._in_flight
        if self._stopping or idle == 0:
            return False
        for event in self._outbox.claim(limit=idle, lease_s=self._lease_s, event_types=list(self._handlers)):
            self._in_flight += 1
            future = threads.submit(self._deliver, event)
            future.add_done_callback(lambda future, event=event: self._finish(event, future))  # type: ignore[misc]
        return True

    def _deliver(self, event: Event) -> None:
        """In a thread: the outside call, if it may still be begun; any exception is a failed attempt."""
        if event.attempts > self._attempts_max:
            # Claimed that often, and no relay came back to say what happened: it may take its relay down.
            raise NotDelivered(f"no outcome of {event.attempts - 1} attempts")
        if event.lease_left_s() <= 0:
            raise NotDelivered("the lease was over before the call began")
        handler_of(self._handlers, event.event_type)(event)

    def _finish(self, event: Event, future: Future[None]) -> None:
        self._finished.put((event, future))
        try:
            self._wake.send(b".")
        except BlockingIOError:
            log.debug("woken already")

    def _mark(self) -> None:
        """Mark all that is finished."""
        while True:
            try:
                event, future = self._finished.get_nowait()
            except Empty:
                break
            self._in_flight -= 1
            self._unmarked.append(self._outcome(event, future.exception()))
        if not self._unmarked:
            return
        held = self._outbox.mark(self._unmarked)
        for outcome in self._unmarked:
            self._count(outcome, held=outcome.event.event_id in held)
        self._unmarked.clear()

    def _outcome(self, event: Event, error: BaseException | None) -> Outcome:
        if error is None:
            return Outcome(event)
        return Outcome(
            event,
            error=error_text(error),
            retry_s=self._backoff.wait_s(event.attempts),
            dead=event.attempts >= self._attempts_max,
        )

    def _count(self, outcome: Outcome, *, held: bool) -> None:
        event = outcome.event
        named = f"event {event.event_id} ({event.event_type}), attempt {event.attempts}"
        if not held:
            self.counts["lease lost"] += 1
            log.warning("%s: not marked, lease %d is over or was marked", named, event.lease_token)
        elif outcome.error is None:
            self.counts["delivered"] += 1
        elif outcome.dead:
            self.counts["dead"] += 1
            log.error("%s: dead: %s", named, outcome.error)
        else:
            self.counts["failed"] += 1
            log.warning("%s: again in %.2f s: %s", named, outcome.retry_s, outcome.error)

    def _wait(self, timeout_s: float, *, watch_database: bool) -> None:
        """Until a call ends, a signal comes, the database speaks (where a claim follows), or the timeout."""
        poll = select.poll()
        poll.register(self._waker, select.POLLIN)
        if watch_database and self._outbox.socket is not None:
            poll.register(self._outbox.socket, select.POLLIN)
        poll.poll(timeout_s * 1000)
        try:
            self._waker.recv(4096)
        except BlockingIOError:
            log.debug("nobody called")
