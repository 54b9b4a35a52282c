"""Who is let in, who waits for how long, and who is turned away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi")
from hawkeye.serve.places import Places  # noqa: E402
from hawkeye.serve.problems import Busy  # noqa: E402


def until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not there():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_beyond_those_who_may_wait_everybody_is_turned_away_at_once() -> None:
    places = Places(2, 1, patience=100.0)
    leave = threading.Event()

    def work() -> bool:
        with places.take():
            return leave.wait(10)

    with ThreadPoolExecutor(3) as threads:
        done = [threads.submit(work) for _ in range(3)]
        until(lambda: places.inside == 3)
        assert places.most == 3
        began = time.monotonic()
        with pytest.raises(Busy) as busy, places.take():
            pass
        assert time.monotonic() - began < 5 and busy.value.retry_s > 0
        leave.set()
        assert all(future.result() for future in done)
    assert places.inside == 0


def waited(places: Places, patience_s: float = 0.0) -> float:
    """Seconds until a request is turned away."""
    began = time.monotonic()
    with pytest.raises(Busy), places.take(patience_s):
        pass
    return time.monotonic() - began


def test_in_a_burst_one_waits_a_turn_and_in_a_crowd_a_part_of_it() -> None:
    places = Places(1, 5, patience=0.1)
    with places.take():
        places.usual_s = 0.2
        waits = [waited(places) for _ in range(12)]
        assert waits[0] > 0.19, "at first it may be a burst"
        assert 0.01 < min(waits[-3:]) < 0.1, "by now it is a crowd"
        assert waited(places, 0.3) > 0.29, "who may wait longer, waits longer"
    for _ in range(30):  # nobody in the way any more
        with places.take():
            assert places.inside == 1, "who gave up has left no trace"
    with places.take():
        places.usual_s = 0.2
        assert waited(places) > 0.19, "the crowd is forgotten"


def test_those_who_wait_are_served_in_the_order_in_which_they_came() -> None:
    places, order, threads = Places(1, 9, patience=100.0), list[int](), list[threading.Thread]()

    def work(number: int) -> None:
        with places.take():
            order.append(number)

    with places.take():
        for number in range(5):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            until(lambda number=number: places.inside == number + 2)  # type: ignore[misc]
    for thread in threads:
        thread.join(10)
    assert order == list(range(5))


def test_places_are_neither_lost_nor_shared_when_many_come_and_give_up() -> None:
    places, now, most, served = Places(3, 4, patience=0.02), 0, 0, 0
    lock = threading.Lock()

    def client() -> None:
        nonlocal now, most, served
        for _ in range(200):
            try:
                with places.take():
                    with lock:
                        now += 1
                        most = max(most, now)
                    time.sleep(0.0002)
                    with lock:
                        now -= 1
                        served += 1
            except Busy:
                pass

    threads = [threading.Thread(target=client) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most <= 3 and served and places.inside == 0
    with places.take(), places.take(), places.take():
        assert places.inside == 3


def test_what_a_request_takes_is_learnt_from_single_pictures() -> None:
    places = Places(1, 1, patience=0.25)
    for pictures in (1, 16):
        before = places.usual_s
        with places.take(pictures=pictures):
            time.sleep(0.001)
        assert (places.usual_s < before) is (pictures == 1)


def test_an_error_gives_the_place_back() -> None:
    places = Places(1, 0, patience=0.25)
    with pytest.raises(ZeroDivisionError), places.take():
        raise ZeroDivisionError
    assert places.inside == 0
