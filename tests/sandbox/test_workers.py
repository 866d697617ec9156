"""Workers carry out tasks, and never outlive their creator."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from connectx.sandbox import workers
from connectx.sandbox.workers import Crew, descriptors_free, in_worker, sparingly
from tests import limits

if TYPE_CHECKING:
    from collections.abc import Callable

    Report = Callable[[int], None]


def append(state: list[int], report: Report, *values: int) -> list[int]:
    for number, value in enumerate(values, 1):
        state.append(value)
        report(number)
    return state


def process_id(_state: object, _report: Report) -> int:
    return os.getpid()


def refuse(_state: object, _report: Report, message: str) -> None:
    raise ValueError(message)


def exit_at_once(_state: object, _report: Report) -> None:
    os._exit(3)


def descriptors(_state: object, _report: Report) -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def soft_limit(_state: object, _report: Report) -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def open_sockets(sockets: list[socket.socket], _report: Report, count: int) -> int:
    before = descriptors_free()
    sockets.extend(socket.socket() for _ in range(count))
    return before - descriptors_free()


def send(sock: socket.socket, _report: Report, data: bytes) -> None:
    sock.sendall(data)


class TestTasks:
    def test_find_what_earlier_ones_left(self, crew: Crew) -> None:
        worker = crew.fork([1])
        worker.start(append, 2).result()
        assert worker.start(append, 3, 4).result() == [1, 2, 3, 4]

    def test_change_only_the_workers_copy_of_the_state(self, crew: Crew) -> None:
        state = [1]
        crew.fork(state).start(append, 2).result()
        assert state == [1]

    def test_report_how_far_they_are(self, crew: Crew) -> None:
        reports: list[int] = []
        crew.fork([]).start(append, 7, 8, 9).result(reports.append)
        assert reports == [1, 2, 3]

    def test_run_side_by_side(self, crew: Crew) -> None:
        jobs = [crew.fork(None).start(process_id) for _ in range(3)]
        assert len({os.getpid(), *(job.result() for job in jobs)}) == 4

    def test_raise_in_the_creator_and_the_worker_goes_on(self, crew: Crew) -> None:
        state: list[int] = []
        worker = crew.fork(state)
        with pytest.raises(ValueError, match="not that") as caught:
            worker.start(refuse, "not that").result()
        assert "in refuse" in "".join(caught.value.__notes__)
        assert worker.start(append, 1).result() == [1]

    def test_that_kill_their_worker(self, crew: Crew) -> None:
        with pytest.raises(ChildProcessError):
            crew.fork(None).start(exit_at_once).result()

    def test_can_use_sockets_of_the_creator(self, crew: Crew) -> None:
        near, far = socket.socketpair()
        with near:
            with far:
                worker = crew.fork(far)
            worker.start(send, b"here").result()
            assert limits.receive(near, 16) == b"here"


class TestDescriptors:
    def test_of_one_worker_are_not_in_the_next(self, crew: Crew) -> None:
        counts = {crew.fork(None).start(descriptors).result() for _ in range(3)}
        assert len(counts) == 1

    def test_free_are_those_not_in_use(self, crew: Crew) -> None:
        assert crew.fork([]).start(open_sockets, 10).result() == 10

    def test_soft_limit_is_raised_to_the_hard_one(self, crew: Crew) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
        try:
            assert crew.fork(None).start(soft_limit).result() == hard
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_reports_are_passed_on_ten_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.05, 0.11, 0.15, 0.2, 0.3])
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: next(times)))
    passed_on: list[int] = []
    report = sparingly(passed_on.append)
    for done in range(1, 6):
        report(done)
    assert passed_on == [2, 5]


class TestInWorker:
    def test_what_a_function_does_to_its_process_ends_with_it(self) -> None:
        before = os.umask(0o22)
        try:
            # A closure will do: it is not sent, but inherited.
            assert in_worker(lambda: os.umask(0o77)) == 0o22
            assert os.umask(0o22) == 0o22
        finally:
            os.umask(before)

    def test_its_error_is_raised(self) -> None:
        with pytest.raises(ZeroDivisionError):
            in_worker(lambda: 1 // 0)


class TestEnd:
    def test_closing_ends_all_workers(self) -> None:
        with Crew() as crew:
            processes = [crew.fork(None).start(process_id).result() for _ in range(3)]
        for process in processes:
            with pytest.raises(ProcessLookupError):
                os.kill(process, 0)

    def test_closing_twice(self) -> None:
        crew = Crew()
        crew.fork(None)
        crew.close()
        crew.close()

    def test_closing_when_a_worker_has_ended_by_itself(self) -> None:
        with Crew() as crew, pytest.raises(ChildProcessError):
            crew.fork(None).start(exit_at_once).result()

    def test_an_interrupt_is_left_to_the_creator(self, crew: Crew) -> None:
        state: list[int] = []
        worker = crew.fork(state)
        os.kill(worker.start(process_id).result(), signal.SIGINT)
        assert worker.start(append, 1).result() == [1]

    def test_a_worker_dies_with_a_creator_that_was_killed(self) -> None:
        program = (
            "import signal, sys\n"
            "from connectx.sandbox.workers import Crew\n"
            "crew = Crew()\n"
            "crew.fork(None)\n"
            "print('ready', flush=True)\n"
            "signal.pause()\n"
        )
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as creator:
            assert limits.line_from(creator) == b"ready\n"
            creator.kill()
            assert creator.stdout
            # The worker has standard output too: it is closed only when both have ended.
            assert creator.stdout.read() == b""
