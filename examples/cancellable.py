"""Three handlers that can be cancelled while they run: async, in a thread, in a process.

::

    pgq-anyio run cancellable:app
    pgq-anyio enqueue download          # prints the id of the job
    pgq-anyio cancel 1 --reason "no longer needed"
"""

import time

import anyio

from pgq_anyio import Job, PgQueuer, ProcessExecutor

app = PgQueuer()


@app.entrypoint("download")
async def download(job: Job) -> None:
    # Only the block is cancelled. What comes after it runs, within the worker's --cancel-grace.
    # (A handler with a second parameter is given what app.get_context(job.id) finds.)
    with app.get_context(job.id).cancellation:
        for part in range(1, 1001):
            print(f"download: part {part}", flush=True)
            await anyio.sleep(0.1)
    context = app.get_context(job.id)
    if context.cancellation.cancelled_caught:
        print(f"download: cancelled ({context.cancel_reason}), removing what is there", flush=True)


@app.entrypoint("transaction")
async def transaction(job: Job) -> None:
    # Without a block the whole handler is cancelled. A shield protects what must be done to the end.
    try:
        print("transaction: begun", flush=True)
        await anyio.sleep(100)
    finally:
        with anyio.move_on_after(2, shield=True):
            await anyio.sleep(0.1)
            print("transaction: rolled back", flush=True)


@app.entrypoint("resize")
def resize(job: Job) -> None:
    # A thread is never abandoned: it has to look.
    cancel_scope = app.get_context(job.id).cancellation
    for step in range(1000):
        if cancel_scope.cancel_called:
            print(f"resize: the thread ends after {step} steps", flush=True)
            return
        if step == 0:
            print("resize: in a thread", flush=True)
        time.sleep(0.1)


def crunch(job: Job) -> None:
    # A process need not look: it gets SIGTERM, and SIGKILL after the worker's --cancel-grace.
    print("crunch: in a process", flush=True)
    while True:
        sum(range(100_000))


app.entrypoint("crunch", executor_factory=ProcessExecutor)(crunch)
