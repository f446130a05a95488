"""Handlers that run at the times of a cron expression, each occurrence once however many workers there are.

::

    pgq-anyio run scheduled:app
"""

from pgq_anyio import PgQueuer, Schedule

app = PgQueuer()


@app.schedule("heartbeat", "* * * * * *")  # a sixth field is seconds
async def heartbeat(schedule: Schedule) -> None:
    print(f"due at {schedule.due_at:%S}", flush=True)


# After a pause of several days: one run (the default), none ("skip"), or one for each day ("catch_up").
@app.schedule("report", "0 8 * * mon-fri", timezone="Europe/Berlin", missed="skip")
def report(schedule: Schedule) -> None:
    print("good morning", flush=True)
