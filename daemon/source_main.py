"""The child of `source_process`: a `KafkaSource` that does what it is asked over a socket, one call after the other.

Started as `python -m daemon.source_main FD`, with the descriptor of its end of the socket.
"""

import os
import select
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any, NoReturn

import structlog

from daemon import logs
from daemon.errors import StopError
from daemon.kafka_client import kafka_settings
from daemon.kafka_source import KafkaSource
from daemon.records import Record
from daemon.settings import Settings
from daemon.source_process import CALL_BYTES, CALL_RECORDS, Reply, Status

log = structlog.get_logger()


class Service:
    """Answers calls until told to close, or its parent falls silent.

    Args:
        connection: to the parent.
        settings: of the trainer.
    """

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._silence_s = settings.session_timeout_s
        self._source = KafkaSource(kafka_settings(settings))

    def run(self) -> None:
        """Until the end."""
        self._connection.send(Reply())
        while self._connection.poll(self._silence_s):
            method, arguments = self._connection.recv()
            if method == "close":
                self._source.close()
                self._connection.send(Reply())
                return
            self._connection.send(self._answer(method, arguments))
        log.warning("source.left", reason=f"no call of the trainer for {self._silence_s:g} s")
        self._source.close()

    def _answer(self, method: str, arguments: tuple[Any, ...]) -> Reply:
        records: list[Record] = []
        value = error = None
        try:
            if method == "poll":
                self._poll(records, arguments[0], wants_records=arguments[1])
            else:
                value = getattr(self._source, method)(*arguments)
        except StopError as caught:
            error = caught
            records += iter(self._source.next, None)
        return Reply(self._status(), tuple(records), value, error)

    def _poll(self, records: list[Record], timeout_s: float, *, wants_records: bool) -> None:
        """Poll, and append records to hand on; what lies ready is not waited with."""
        if wants_records:
            self._hand_on(records)
        self._source.poll(0.0 if records else timeout_s)
        if wants_records:
            self._hand_on(records)

    def _hand_on(self, records: list[Record]) -> None:
        size = sum(len(record.value or b"") for record in records)
        while len(records) < CALL_RECORDS and size < CALL_BYTES and (record := self._source.next()) is not None:
            records.append(record)
            size += len(record.value or b"")

    def _status(self) -> Status:
        source = self._source
        try:
            caught_up = source.caught_up
        except StopError:
            caught_up = False  # the next poll says why
        return Status(source.unsettled, source.waiting, source.placed, caught_up, source.elsewhere, source.lags())


def main() -> None:
    """Serve the socket whose number is the only argument."""
    descriptor = int(sys.argv[1])
    # Ctrl-C and a service manager's SIGTERM are the parent's business: it commits first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end_with_parent, args=(descriptor,), daemon=True).start()
    connection = Connection(descriptor)
    method, arguments = connection.recv()
    if method != "open":
        return  # the trainer ends before it needs a consumer
    (settings,) = arguments
    logs.configure(settings.log_format, settings.log_level)
    try:
        Service(connection, settings).run()
    except StopError as error:
        connection.send(Reply(error=error))
    except Exception as error:  # noqa: BLE001 - a bug; the parent ends of it as if it had happened there
        error.add_note(f"in the Kafka client's process:\n{traceback.format_exc()}")
        connection.send(Reply(error=RuntimeError("\n".join([repr(error), *error.__notes__]))))


def _end_with_parent(descriptor: int) -> NoReturn:
    """The kernel tells when the other end of the socket is gone, whatever this process is doing."""
    poller = select.poll()
    poller.register(descriptor, 0)
    poller.poll()
    os._exit(0)


if __name__ == "__main__":
    main()
