"""``Queries`` on both backends and ``SyncQueries``, given anything: both refuse the same, and what fits nothing changes
nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import given
from hypothesis import strategies as st

from pgq_anyio import ConfigurationError, PsycopgDriver, Queries, SyncQueries
from tests.fuzz.test_functions import attempt, counts
from tests.fuzz.values import DUES, NUMBERS, ODD, TEXTS, ZONES
from tests.profiles import scaled

pytestmark = pytest.mark.heavy

ANYTHING = ODD | NUMBERS | TEXTS | DUES
#: What is left out is no filter, and then others would match.
WRONG = (ODD | TEXTS).filter(lambda value: value is not None)
#: Before and after all that there is: no job matches.
BEFORE = (
    st.sampled_from([datetime(1, 1, 1), datetime(1, 1, 1, tzinfo=UTC), timedelta(days=36_000)])
    | st.builds(lambda zone: datetime.min.replace(tzinfo=zone), ZONES)
    | WRONG
)
AFTER = (
    st.sampled_from([datetime(9999, 12, 31), datetime(9999, 12, 31, tzinfo=UTC)])
    | st.builds(lambda zone: datetime.max.replace(tzinfo=zone), ZONES)
    | WRONG
)
#: Calls that find nothing, by the method's name.
CALLS = st.one_of(
    st.tuples(st.just("mark_job_as_cancelled"), st.fixed_dictionaries({"older_than": BEFORE, "reason": ODD | TEXTS})),
    st.tuples(
        st.just("mark_job_as_cancelled"),
        st.fixed_dictionaries({"older_than": BEFORE, "status": st.just("queued") | ANYTHING}),
    ),
    st.tuples(st.just("requeue"), st.fixed_dictionaries({"finished_after": AFTER, "status": st.just("cancelled")})),
    st.tuples(
        st.just("requeue"),
        st.fixed_dictionaries(
            {"finished_before": BEFORE, "finished_after": AFTER | DUES, "limit": ANYTHING, "error_type": ANYTHING}
        ),
    ),
    st.tuples(st.just("resume_schedule"), st.fixed_dictionaries({"name": ANYTHING, "expression": ANYTHING})),
    st.tuples(st.just("pause_schedule"), st.fixed_dictionaries({"name": ANYTHING, "expression": ANYTHING})),
    st.tuples(st.just("queue_size"), st.fixed_dictionaries({"limit": ANYTHING})),
    st.tuples(
        st.just("list_jobs"),
        st.fixed_dictionaries({"status": ANYTHING, "entrypoint": ANYTHING, "limit": ANYTHING, "before": ANYTHING}),
    ),
    st.tuples(st.just("job_status"), st.fixed_dictionaries({"ids": ANYTHING})),
    st.tuples(st.just("get_job"), st.fixed_dictionaries({"job_id": ANYTHING})),
    st.tuples(
        st.just("enqueue"),
        st.fixed_dictionaries(
            {"entrypoint": ODD, "payload": ANYTHING, "priority": ANYTHING, "execute_after": ANYTHING}
        ),
    ),
)


def test_calls_that_find_nothing(anyio_backend: str, dsn: str, schema: str) -> None:
    """The asynchronous form, in an event loop of its own, says what the blocking one says."""

    async def ask(queries: Queries, name: str, options: dict[str, Any]) -> Any:
        with anyio.fail_after(20):
            try:
                return await getattr(queries, name)(**options)
            except ConfigurationError as error:
                return error

    with (
        SyncQueries(dsn, schema=schema) as blocking,
        start_blocking_portal(anyio_backend) as portal,
        portal.wrap_async_context_manager(PsycopgDriver(dsn)) as driver,
    ):
        queries = Queries(driver, schema=schema)
        blocking.enqueue(["bystander", "former"])
        blocking.mark_job_as_cancelled(entrypoint="former")
        before = counts(dsn, schema)

        @scaled(400)
        @given(call=CALLS)
        def check(call: tuple[str, dict[str, Any]]) -> None:
            name, options = call
            answer = attempt(getattr(blocking, name), **options)
            same = portal.call(ask, queries, name, options)
            assert (type(answer), str(answer)) == (type(same), str(same))

        check()
    assert before == counts(dsn, schema)
