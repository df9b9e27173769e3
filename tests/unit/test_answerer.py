"""The line of requests: what waits together is answered together, and nobody pays for somebody else's mistake."""

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from daemon.answerer import Answered, Answerer, BusyError, ClosedError, Question
from supsup_online.answering import Inquiry, answer, answer_told
from supsup_online.errors import BadBatchError, NothingLearntError, SpecError
from supsup_online.snapshot import Shelf, Snapshot
from unit import tiny

NET = tiny.network()
IDS = [3, 11, 12, 40]
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 4, 4), dtype=np.uint8)
CONFIDENT, DOUBTFUL = math.log(tiny.SPEC.outputs) + 1, 0.0
PATIENCE_S = 20


def snapshot(version: int = 1, usual: float = CONFIDENT, net=NET) -> Snapshot:
    shelf, masks = Shelf(net), tiny.random_masks(net, 4)
    return shelf.next(shelf.empty(), version, dict(zip(IDS, masks, strict=True)), dict.fromkeys(IDS, usual), set())


def question(rows: int = 1, first: int = 0, tasks: list[int] | None = None, stream: str = "", **how) -> Question:
    told = None if tasks is None else np.array(tasks, dtype=np.int64)
    return Question(PIXELS[first : first + rows], Inquiry(**how), told, stream)


@dataclass
class Desk:
    """An answerer's snapshot, which can be withheld, and the passes it made: how many rows each had."""

    snapshot: Snapshot | None = field(default_factory=snapshot)
    trouble: list[Exception] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)
    passes: list[int] = field(default_factory=list)

    def newest(self) -> Snapshot | None:
        """What the answerer takes its snapshot from."""
        assert self.open.wait(PATIENCE_S)
        if self.trouble:
            raise self.trouble.pop()
        return self.snapshot

    def passed(self, _: Question, answered: Answered) -> None:
        """What the answerer tells its passes."""
        self.passes.append(len(answered.answer.labels))


@pytest.fixture
def desk() -> Desk:
    return Desk()


@contextmanager
def answerer(desk: Desk, **options) -> Iterator[Answerer]:
    """An answerer that is opened at the end, so that it can end."""
    with Answerer(desk.newest, passed=desk.passed, **options) as subject:
        try:
            yield subject
        finally:
            desk.open.set()


def asked_together(desk: Desk, *questions: Question, **options) -> list[Future]:
    """The answers to questions that all wait while another one is answered; `desk.passes` are those of these alone."""
    with answerer(desk, **options) as subject:
        first = subject.ask(question(stream="first"))
        while subject._line.qsize():  # until it is somebody's turn
            pass
        waiting = [subject.ask(each) for each in questions]
        desk.open.set()
        for future in (first, *waiting):
            future.exception(PATIENCE_S)
    desk.passes = desk.passes[1:]
    return waiting


def assert_answers(future: Future, asked: Question, bank: Snapshot) -> None:
    """It is the answer that the question gets by itself."""
    x = bank.network.inputs(asked.x)
    found = future.result(PATIENCE_S).answer
    expected = answer(bank, x, asked.inquiry) if asked.tasks is None else answer_told(
        bank, x, asked.tasks, asked.inquiry
    )  # fmt: skip
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.mask_ids, expected.mask_ids)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-4, atol=1e-6)
    assert found.inferred == expected.inferred


# -- passes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exact", "one-shot", "binary"])
def test_requests_that_wait_together_are_answered_in_one_pass_and_each_gets_its_own_rows(desk: Desk, how: str) -> None:
    questions = [question(rows, first, inference=how) for rows, first in ((1, 0), (3, 1), (2, 4), (1, 0))]
    for future, each in zip(asked_together(desk, *questions), questions, strict=True):
        assert_answers(future, each, desk.snapshot)
    assert desk.passes == [7]


def test_tasks_that_are_told_share_a_pass(desk: Desk) -> None:
    questions = [question(2, 0, [3, 40]), question(3, 2, [11, 11, 12])]
    for future, each in zip(asked_together(desk, *questions), questions, strict=True):
        assert_answers(future, each, desk.snapshot)
    assert desk.passes == [5]


def test_bytes_and_numbers_share_a_pass(desk: Desk) -> None:
    numbers = Question(PIXELS[:2].astype(np.float32) / 255, Inquiry())
    questions = [question(2), numbers]
    for future, each in zip(asked_together(desk, *questions), questions, strict=True):
        assert_answers(future, each, desk.snapshot)
    assert desk.passes == [4]


def test_inputs_that_nobody_may_write_to_are_answered(desk: Desk) -> None:
    frozen = [np.frombuffer(PIXELS[:2].astype(kind).tobytes(), kind).reshape(2, 4, 4) for kind in ("u1", "<f4")]
    questions = [Question(x, Inquiry(scope=scope)) for x in frozen for scope in ("sample", "batch")]
    assert not any(x.flags.writeable for x in frozen)
    for future, each in zip(asked_together(desk, *questions), questions, strict=True):
        assert_answers(future, each, desk.snapshot)


@pytest.mark.parametrize("alone", [{"scope": "batch"}, {"stream": "a"}], ids=["batch", "stream"])
def test_rows_of_one_task_and_rows_of_a_stream_are_answered_alone(desk: Desk, alone: dict) -> None:
    questions = [question(1), question(2), question(3, **alone), question(4, **alone), question(5), question(6)]
    for future, each in zip(asked_together(desk, *questions), questions, strict=True):
        future.result(PATIENCE_S)
        if not each.stream:
            assert_answers(future, each, desk.snapshot)
    assert desk.passes == [3, 3, 4, 11]


@pytest.mark.parametrize(
    "other", [{"inference": "one-shot"}, {"margin": 0.5}, {"tasks": [3]}], ids=["inference", "margin", "told"]
)
def test_requests_that_are_asked_otherwise_do_not_share_a_pass(desk: Desk, other: dict) -> None:
    asked_together(desk, question(2), question(1, **other), question(2), question(2))
    assert desk.passes == [2, 1, 4]


def test_tasks_that_are_told_share_a_pass_though_the_scope_is_batch(desk: Desk) -> None:
    asked_together(desk, *[question(2, 0, [3, 3], scope="batch")] * 2)
    assert desk.passes == [4]


def test_a_pass_has_no_more_rows_than_it_may_unless_one_request_has_them(desk: Desk) -> None:
    asked_together(desk, *(question(rows) for rows in (2, 2, 2, 9, 1)), batch_rows=5)
    assert desk.passes == [4, 2, 9, 1]


def test_a_first_request_waits_for_others_where_it_is_told_to(desk: Desk) -> None:
    desk.open.set()
    with answerer(desk, wait_s=PATIENCE_S, batch_rows=4) as subject:
        futures = [subject.ask(question(2)) for _ in range(2)]
        assert [len(future.result(PATIENCE_S).answer.labels) for future in futures] == [2, 2]
    assert desk.passes == [4]


def test_whoever_gives_up_before_its_turn_is_not_answered(desk: Desk) -> None:
    with answerer(desk) as subject:
        subject.ask(question(stream="first"))
        futures = [subject.ask(question(rows)) for rows in (1, 2, 4)]
        assert futures[1].cancel()
        desk.open.set()
        assert len(futures[2].result(PATIENCE_S).answer.labels) == 4
    assert desk.passes == [1, 5]
    assert subject.waiting == 0


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_a_wrong_task_spoils_its_own_request_only(desk: Desk) -> None:
    questions = [question(2, 0, [3, 40]), question(1, 2, [999]), question(1, 3, [12])]
    good, wrong, other = asked_together(desk, *questions)
    with pytest.raises(BadBatchError, match="no mask 999"):
        wrong.result(PATIENCE_S)
    assert_answers(good, questions[0], desk.snapshot)
    assert_answers(other, questions[2], desk.snapshot)


def test_an_objective_that_the_network_has_no_use_for_is_told_to_who_asked() -> None:
    desk = Desk(snapshot(net=tiny.network(replace(tiny.SPEC, outputs=tiny.CLASSES))))
    wrong, right = asked_together(desk, question(inference="one-shot", objective="G"), question())
    with pytest.raises(SpecError, match="superfluous"):
        wrong.result(PATIENCE_S)
    assert len(right.result(PATIENCE_S).answer.labels) == 1


def test_an_unexpected_error_reaches_who_asked_and_the_thread_lives_on(desk: Desk) -> None:
    desk.open.set()
    with answerer(desk) as subject:
        desk.trouble.append(RuntimeError("out of luck"))
        with pytest.raises(RuntimeError, match="out of luck"):
            subject.ask(question()).result(PATIENCE_S)
        assert len(subject.ask(question(3)).result(PATIENCE_S).answer.labels) == 3
    assert subject.waiting == 0


@pytest.mark.parametrize("bank", [None, Shelf(NET).empty()], ids=["no bank", "no mask"])
def test_without_a_mask_there_is_nothing_to_answer_with(bank: Snapshot | None) -> None:
    (future,) = asked_together(Desk(bank), question())
    with pytest.raises(NothingLearntError, match="nothing has been learnt"):
        future.result(PATIENCE_S)


# -- how many, and the end ---------------------------------------------------------------------------------------------


def test_more_rows_than_may_wait_are_refused_and_taken_again_later(desk: Desk) -> None:
    with answerer(desk, queue_rows=10) as subject:
        waiting = [subject.ask(question(5)), subject.ask(question(5))]
        assert subject.waiting == 10
        with pytest.raises(BusyError, match="10 rows wait already, at most 10 may"):
            subject.ask(question(1))
        desk.open.set()
        for future in waiting:
            future.result(PATIENCE_S)
        while subject.waiting:
            pass
        assert subject.ask(question(1)).result(PATIENCE_S)


def test_a_request_of_more_rows_than_may_wait_is_taken_when_nobody_waits(desk: Desk) -> None:
    with answerer(desk, queue_rows=10) as subject:
        large = subject.ask(question(20))
        with pytest.raises(BusyError):
            subject.ask(question(1))
        desk.open.set()
        assert len(large.result(PATIENCE_S).answer.labels) == 20


def test_at_the_end_what_waits_is_answered_and_nobody_else(desk: Desk) -> None:
    opening = threading.Timer(0.1, desk.open.set)
    with Answerer(desk.newest) as subject:
        waiting = [subject.ask(question(1, scope=scope)) for scope in ("sample", "sample", "batch", "sample")]
        opening.start()
    assert [len(future.result(0).answer.labels) for future in waiting] == [1] * 4
    with pytest.raises(ClosedError, match="ask another one"):
        subject.ask(question())
    opening.join()


def test_whoever_asks_while_it_ends_is_answered_or_sent_away(desk: Desk) -> None:
    def until_sent_away(subject: Answerer) -> list[Future]:
        futures = []
        with suppress(ClosedError):
            while True:
                with suppress(BusyError):
                    futures.append(subject.ask(question()))
        return futures

    desk.open.set()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            with Answerer(desk.newest, queue_rows=64) as subject:
                asking = [pool.submit(until_sent_away, subject) for _ in range(4)]
                time.sleep(0.02)
            futures = [future for each in asking for future in each.result(PATIENCE_S)]
            assert all(future.result(PATIENCE_S) for future in futures)


# -- streams and versions ----------------------------------------------------------------------------------------------


def inferred(subject: Answerer, stream: str, rows: int = 3) -> int:
    """How many rows of a request of this stream had all masks asked."""
    return subject.ask(question(rows, stream=stream)).result(PATIENCE_S).answer.inferred


def test_the_last_mask_of_a_stream_is_tried_first(desk: Desk) -> None:
    desk.open.set()
    with answerer(desk) as subject:
        assert [inferred(subject, "a"), inferred(subject, "a"), inferred(subject, "b")] == [3, 0, 3]
        first, second = (subject.ask(question(1, row, stream="a")).result(PATIENCE_S).answer for row in (4, 9))
        assert first.mask_ids.tolist() == second.mask_ids.tolist()


def test_a_request_of_no_stream_remembers_nothing(desk: Desk) -> None:
    desk.open.set()
    with answerer(desk) as subject:
        assert [inferred(subject, "") for _ in range(3)] == [3, 3, 3]


def test_a_stream_whose_mask_is_not_confident_any_more_is_inferred_anew(desk: Desk) -> None:
    desk.open.set()
    with answerer(desk) as subject:
        assert [inferred(subject, "a"), inferred(subject, "a")] == [3, 0]
        desk.snapshot = snapshot(usual=DOUBTFUL)
        assert inferred(subject, "a") == 3


def test_a_stream_that_changes_its_task_changes_its_mask() -> None:
    learner = tiny.learner()
    for task in range(2):
        assert tiny.run(learner, tiny.permuted(task)(40, seed=task))[-1].mask_id == task
    learner.sync()
    words = {mask_id: learner.bank.words(mask_id) for mask_id in range(2)}
    usual = {mask_id: learner.stats[mask_id].entropy for mask_id in range(2)}
    shelf = Shelf(learner.network)
    desk = Desk(shelf.next(shelf.empty(), 1, words, usual, set()))
    desk.open.set()
    found = []
    with answerer(desk) as subject:
        for seed, task in enumerate((0, 0, 1, 1)):
            x = next(tiny.permuted(task)(1, seed=50 + seed)).x
            whole = subject.ask(Question(x, Inquiry(scope="batch"), stream="a")).result(PATIENCE_S).answer
            found.append((int(whole.mask_ids[0]), whole.inferred > 0))
    assert found == [(0, True), (0, False), (1, True), (1, False)]


def test_the_stream_unused_for_longest_is_forgotten_first(desk: Desk) -> None:
    desk.open.set()
    with answerer(desk, max_sticky=2) as subject:
        assert [inferred(subject, name) for name in "abac"] == [3, 3, 0, 3]
        assert [inferred(subject, name) for name in "acb"] == [0, 0, 3]


def test_an_answer_is_of_the_version_that_was_newest_when_its_pass_began(desk: Desk) -> None:
    desk.open.set()
    with answerer(desk) as subject:
        versions = []
        for version in (4, 5, 9):
            desk.snapshot = snapshot(version)
            versions.append(subject.ask(question()).result(PATIENCE_S).version)
    assert versions == [4, 5, 9]


def test_requests_of_one_pass_have_one_version(desk: Desk) -> None:
    desk.snapshot = snapshot(7)
    assert {future.result(PATIENCE_S).version for future in asked_together(desk, question(2), question(3))} == {7}
