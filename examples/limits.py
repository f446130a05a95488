"""How often and how many at once: limits that hold for all workers together, exactly.

::

    pgq-anyio run limits:app --dequeue-timeout 10s
    pgq-anyio enqueue send_mail
"""

import time

import anyio

from pgq_anyio import Job, PgQueuer

app = PgQueuer()


# Ten starts a second at an even pace, however many workers there are.
@app.entrypoint("send_mail", requests_per_second=10)
def send_mail(job: Job) -> None:
    print(f"send_mail: {time.time():.2f}", flush=True)


# At most four at once. The others wait in the queue, not in the worker.
@app.entrypoint("data_processing", concurrency_limit=4)
async def data_processing(job: Job) -> None:
    print("data_processing: begins", flush=True)
    await anyio.sleep(0.2)
    print("data_processing: ends", flush=True)


# One at a time, by priority and then in the order of enqueueing.
# A worker that gives no sign of life for ten seconds (retry_timer) is taken for dead, and its job runs elsewhere.
@app.entrypoint("shared_resource", serialized_dispatch=True, retry_timer=10)
async def process_shared_resource(job: Job) -> None:
    print(f"shared_resource: {(job.data or b'').decode()} begins", flush=True)
    await anyio.sleep(0.05)
    print(f"shared_resource: {(job.data or b'').decode()} ends", flush=True)
