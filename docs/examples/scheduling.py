"""A schedule of every second, in the database's time, run once however many workers there are."""

import os
from datetime import datetime

import anyio

from pgq_anyio import PgQueuer, Schedule

DSN = os.environ["PGQ_ANYIO_DSN"]
app = PgQueuer(DSN)
seen: list[datetime] = []


@app.schedule("tick", "* * * * * *")  # six fields: the last one is seconds
async def tick(schedule: Schedule) -> None:
    seen.append(schedule.due_at)
    print("tick", len(seen))
    if len(seen) == 3:
        app.stop()


@app.schedule("report", "0 6 * * mon-fri", timezone="Europe/Berlin", missed="coalesce")
async def report(schedule: Schedule) -> None:
    print("the report of", schedule.due_at)


async def main() -> None:
    await app.run()
    print("a whole second apart:", all((later - earlier).microseconds == 0 for earlier, later in zip(seen, seen[1:])))


if __name__ == "__main__":
    anyio.run(main)
