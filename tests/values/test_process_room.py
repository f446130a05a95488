"""How many jobs are claimed for the processes of a worker."""

from __future__ import annotations

import pytest

from pgq_anyio._process_room import MOST_AHEAD, ProcessRoom

pytestmark = pytest.mark.promise(16)


def make_room(size: int, taken: int) -> tuple[ProcessRoom, list[bool]]:
    """A room, and what it has said of free processes."""
    said: list[bool] = []
    room = ProcessRoom(lambda: said.append(True))
    room.size = size
    for _ in range(taken):
        room.take()
    return room, said


def end(room: ProcessRoom, count: int) -> None:
    for _ in range(count):
        room.give_back(started=True)
        room.take()


def test_there_is_room_for_as_many_as_there_are_processes() -> None:
    room, said = make_room(2, 0)
    assert (2, 2) == (room.free, room.room)
    room.take()
    room.take()
    room.take()  # a run of a schedule, for which nobody asks
    assert (0, 0) == (room.free, room.room)
    room.give_back(started=True)
    room.give_back(started=True)
    assert (1, 1) == (room.free, room.room)
    assert [True, True] == said


@pytest.mark.parametrize(("in_a_second", "ahead"), [(2, 0), (20, 1), (200, 10), (100_000, 2 * MOST_AHEAD)])
def test_short_jobs_are_claimed_ahead(in_a_second: int, ahead: int) -> None:
    """As many as end within a tenth of a second; what has been seen in the first second counts half."""
    room, _ = make_room(2, 2)
    room.look_ahead(100.0)
    end(room, in_a_second)
    room.look_ahead(101.0)
    assert (0, ahead) == (room.free, room.room)


def test_what_has_waited_in_vain_was_claimed_too_early() -> None:
    """From then on nothing is claimed ahead, until jobs have ended again."""
    room, _ = make_room(2, 2)
    room.look_ahead(100.0)
    end(room, 1000)
    room.look_ahead(101.0)
    room.take()
    room.give_back(started=False)
    assert (0, 0) == (room.free, room.room)
    room.look_ahead(102.0)
    assert (0, 0) == (room.free, room.room)
