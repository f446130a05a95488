# pgq-anyio enqueue fetch --payload https://example.org && pgq-anyio run quickstart:app
import anyio

from pgq_anyio import Job, PgQueuer

app = PgQueuer()


@app.entrypoint("fetch", timeout=30)
async def fetch(job: Job) -> None:
    await anyio.sleep(0.1)
    print("fetched", job.data, flush=True)
