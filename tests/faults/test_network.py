"""A network that delays, cuts, closes halves, and swallows everything; and comes back."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import attrs
import pytest

from pgq_anyio._db.retrying import PATIENCE
from tests.faults.conftest import SceneMaker
from tests.faults.producer import producing
from tests.faults.rows import form
from tests.faults.scene import BACKENDS
from tests.worker.proxy import Proxy, open_proxy

pytestmark = pytest.mark.heavy


@attrs.frozen
class Trouble:
    """One kind of trouble."""

    title: str
    #: how often, in the two forms of the suite
    short: int
    long: int
    #: the lease of the workers (in seconds)
    lease: float = 8.0
    #: how long the trouble lasts (in seconds)
    lasts: float = 0.0
    #: within which time everybody is at work again (in seconds)
    bound: float = 10.0
    #: whether the lease is over before the network is back
    is_lost: bool = False


TROUBLES = {
    "delayed": Trouble("everything takes 50 ms more, in each direction", 1, 20, lasts=2.0),
    "cut": Trouble("all connections of a worker are reset", 3, 60),
    "closed for the client": Trouble("the server's side of all connections closes", 2, 30),
    "closed for the server": Trouble("the worker's side of all connections closes", 2, 30),
    # One heartbeat is lost in it, and the next is in time. Outcomes are sent again when patience ends.
    "silent": Trouble("packets vanish for a tenth of the lease", 2, 20, lasts=0.8, bound=PATIENCE + 5),
    "gone": Trouble(
        "packets vanish for longer than the lease", 2, 20, lease=2.0, lasts=3.0, bound=PATIENCE + 5, is_lost=True
    ),
}


@pytest.fixture
def proxies(server_dsn: str) -> Iterator[list[Proxy]]:
    """A way to the server for each of two workers."""
    with ExitStack() as stack:
        yield [stack.enter_context(open_proxy(server_dsn)) for _ in range(2)]


def begin(proxy: Proxy, kind: str) -> None:
    """Let the trouble begin."""
    match kind:
        case "delayed":
            proxy.delay = 0.05
        case "cut":
            assert proxy.cut() > 0
        case "closed for the client":
            assert proxy.half_close(side="client") > 0
        case "closed for the server":
            assert proxy.half_close(side="server") > 0
        case _:
            proxy.silence()


def end(proxy: Proxy) -> None:
    """The network is well again: for all connections, or, as after a change of the route, for new ones only."""
    proxy.delay = 0.0
    random.choice([proxy.resume, proxy.forget])()


@pytest.mark.promise(14, 15)
@pytest.mark.parametrize("kind", TROUBLES)
def test_the_network_is_in_trouble(make_scene: SceneMaker, proxies: list[Proxy], kind: str) -> None:
    """One of two workers behind a network is hit each time, a third one has its own way. Without a lost lease no run is
    repeated.
    """
    trouble = TROUBLES[kind]
    times = form(short=trouble.short, long=trouble.long)
    scene = make_scene(
        5,
        trouble.title,
        bound=trouble.bound,
        allowed="its handler had ended, or was a thread, and its lease was over" if trouble.is_lost else "",
    )
    workers = [
        scene.start(backend, ready=False, lease=trouble.lease, dsn=proxy.dsn)
        for backend, proxy in zip(BACKENDS, proxies, strict=True)
    ]
    scene.wait_registered(*workers, scene.start("asyncio", ready=False, lease=trouble.lease))
    with producing(scene, "trio"):
        for done in range(times):
            scene.wait_ended(scene.ended() + 50)
            scene.hit(*([workers[done % 2]] if trouble.is_lost else []))
            begin(proxies[done % 2], kind)
            threading.Event().wait(trouble.lasts)  # for as long as the network is in trouble
            end(proxies[done % 2])
            scene.recover()
    row = scene.finish()
    if not trouble.is_lost:
        assert (0, 0) == (row.doubled, row.interrupted)
