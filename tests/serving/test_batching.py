"""Samples of many callers, gathered into batches by one thread."""

import threading
import time

import pytest

from dna_probe.detector import Prediction
from dna_probe.serving import batching
from dna_probe.serving.batching import Batcher, Busy


class Judge:
    """Notes what it was given and by which thread; fails on a sample named so."""

    def __init__(self, gate=None):
        self.batches, self.threads, self.gate = [], set(), gate

    def stream(self, sources, options=None):
        if self.gate is not None:
            self.gate.wait(10)
        self.batches.append(list(sources))
        self.threads.add(threading.current_thread().name)
        if "not finite" in sources:
            raise ArithmeticError("not finite")
        return iter([Prediction(source, 0.5, "real", 0.5) for source in sources])


def test_what_comes_during_one_batch_makes_the_next():
    gate, sizes = threading.Event(), []
    judge = Judge(gate)
    batcher = Batcher(judge, max_batch=4, wait=0, observe=sizes.append)
    first = batcher.submit(["a"])
    while batcher.waiting:
        time.sleep(0.001)
    later = batcher.submit(["b", "c"]) + batcher.submit(["d", "e", "f"])
    assert batcher.waiting == 5
    gate.set()
    assert [future.result(10).path for future in first + later] == list("abcdef")
    batcher.close()
    assert judge.batches == [["a"], ["b", "c", "d", "e"], ["f"]] and sizes == [1, 4, 1]
    assert judge.threads == {"dna-probe-batches"}


def test_a_sample_waits_for_others():
    judge = Judge()
    batcher = Batcher(judge, max_batch=3, wait=30)
    futures = [future for name in "abc" for future in batcher.submit([name])]
    assert [future.result(10).path for future in futures] == ["a", "b", "c"]
    batcher.close()
    assert judge.batches == [["a", "b", "c"]]


def test_only_the_sample_at_fault_fails():
    batcher = Batcher(Judge(), max_batch=3, wait=30)
    good, bad, other = batcher.submit(["a", "not finite", "b"])
    assert good.result(10).path == "a" and other.result(10).path == "b"
    with pytest.raises(ArithmeticError):
        bad.result(10)
    batcher.close()


def test_calls_run_in_turn_and_alone():
    judge = Judge()
    batcher = Batcher(judge, max_batch=8, wait=0.2)
    before = batcher.submit(["a"])
    call = batcher.call(lambda: list(judge.batches))
    failing = batcher.call(lambda: 1 / 0)
    after = batcher.submit(["b"])
    assert call.result(10) == [["a"]]
    assert before[0].result(10).path == "a" and after[0].result(10).path == "b"
    with pytest.raises(ZeroDivisionError):
        failing.result(10)
    batcher.close()


def test_a_request_given_up_is_not_judged():
    gate = threading.Event()
    judge = Judge(gate)
    batcher = Batcher(judge, max_batch=1, wait=0)
    running = batcher.submit(["a"])[0]
    while batcher.waiting:
        time.sleep(0.001)
    given_up, kept = batcher.submit(["b", "c"])
    assert given_up.cancel()
    gate.set()
    assert running.result(10).path == "a" and kept.result(10).path == "c"
    batcher.close()
    assert judge.batches == [["a"], ["c"]]


def test_closing_answers_what_is_queued_and_takes_no_more(monkeypatch):
    gate = threading.Event()
    batcher = Batcher(Judge(gate), max_batch=2, wait=0)
    futures = batcher.submit(list("abcde"))
    monkeypatch.setattr(batching, "MAX_WAITING", 6)
    with pytest.raises(Busy, match=r"busy\. \d samples wait already"):
        batcher.submit(list("fghij"))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher._closed:
        time.sleep(0.001)
    with pytest.raises(Busy, match="The service is stopping"):
        batcher.submit(["late"])
    gate.set()
    closing.join(10)
    assert [future.result(0).path for future in futures] == list("abcde")
