"""Executors decide how the jobs of a name are run: one of one's own, and the one that calls its handler again.

::

    pgq-anyio run executors:app
    pgq-anyio enqueue user_notification --payload "email|Your parcel is on its way"
    pgq-anyio enqueue ask_api
    pgq-anyio enqueue call_api
"""

from datetime import timedelta
from functools import partial

from pgq_anyio import (
    AbstractEntrypointExecutor,
    Context,
    Job,
    PgQueuer,
    RetryWithBackoffEntrypointExecutor,
)

app = PgQueuer()


class NotificationExecutor(AbstractEntrypointExecutor):
    """Sends what the payload says, and needs no handler. The entrypoint's name and options are ``self.parameters``."""

    async def execute(self, job: Job, context: Context) -> None:
        type_, message = (job.data or b"").decode().split("|")
        if type_ == "email":
            await self.send_email(message)
        elif type_ == "sms":
            await self.send_sms(message)
        else:
            raise ValueError(f"{self.parameters.name} knows no way called {type_!r}")

    async def send_email(self, message: str) -> None:
        print(f"sending email: {message}", flush=True)

    async def send_sms(self, message: str) -> None:
        print(f"sending sms: {message}", flush=True)


@app.entrypoint("user_notification", executor_factory=NotificationExecutor)
async def notification_task(job: Job) -> None:
    """The executor does it all."""


calls: dict[int, int] = {}


def fail_twice(name: str, job: Job) -> None:
    """What an API does on a bad day."""
    calls[job.id] = calls.get(job.id, 0) + 1
    if calls[job.id] < 3:
        raise ConnectionError("the API is not there")
    print(f"{name}: answered at call {calls.pop(job.id)}", flush=True)


# For errors that pass within seconds, inside one run. (For longer ones: max_attempts of the entrypoint, or Retry.)
@app.entrypoint("ask_api", executor_factory=RetryWithBackoffEntrypointExecutor)
async def ask_api(job: Job) -> None:
    fail_twice("ask_api", job)


# The same with every option; these are the defaults.
patient = partial(
    RetryWithBackoffEntrypointExecutor,
    max_attempts=5,  # calls in all
    initial_delay=0.1,  # before the second one; numbers are seconds
    backoff_multiplier=2,  # each pause is twice the one before …
    max_delay=timedelta(seconds=10),  # … up to this one
    max_time=timedelta(minutes=5),  # no call later than this
    jitter=True,  # so that jobs that failed together do not come back together
)


@app.entrypoint("call_api", executor_factory=patient)
async def call_api(job: Job) -> None:
    fail_twice("call_api", job)
