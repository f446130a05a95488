"""Handlers in threads and processes, and an executor of one's own."""

import os
import threading

import anyio

from pgq_anyio import (
    AbstractEntrypointExecutor,
    Context,
    ExecutorParameters,
    Job,
    PgQueuer,
    ProcessExecutor,
    PsycopgDriver,
    Queries,
)

DSN = os.environ["PGQ_ANYIO_DSN"]
app = PgQueuer(DSN)


@app.entrypoint("thread")
def thread(job: Job) -> None:
    print("in a thread:", threading.current_thread() is not threading.main_thread())


@app.entrypoint("process", executor_factory=ProcessExecutor)
def process(job: Job) -> None:
    print("in another process:", os.getpid() != int(job.payload or b"0"), flush=True)


class Notifier(AbstractEntrypointExecutor):
    """Send a message by what its payload says, and leave the decorated function alone."""

    def __init__(self, parameters: ExecutorParameters, sender: str = "us") -> None:
        super().__init__(parameters)
        self.sender = sender

    async def execute(self, job: Job, context: Context) -> None:
        kind, _, text = (job.payload or b"").decode().partition("|")
        print(f"{self.parameters.name}: {kind} from {self.sender}: {text}")


@app.entrypoint("notify", executor_factory=Notifier)
async def notify(job: Job) -> None:
    """Never called: the executor does it all."""


async def main() -> None:
    async with PsycopgDriver(DSN) as driver:
        queries = Queries(driver)
        for name, payload in (("thread", None), ("process", b"%d" % os.getpid()), ("notify", b"mail|it works")):
            await queries.enqueue(name, payload)
            await app.run(mode="drain")


if __name__ == "__main__":
    anyio.run(main)
