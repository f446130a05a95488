"""Bugs that other job queues had, and the tests that would fail if we had them.

A row is the bug in one sentence, with tests as ``folder/module::test``, or with the reason why there can be none.
``test_index.py`` sees to it that each of them exists.
"""

from __future__ import annotations

from typing import Final

import attrs


@attrs.frozen
class Row:
    """One bug."""

    bug: str
    tests: tuple[str, ...] = ()
    #: why no test can have it, or what is left to do
    reason: str = ""


def _row(bug: str, *tests: str, reason: str = "") -> Row:
    return Row(bug, tests, reason)


ROWS: Final = (
    _row(
        "the rescuer overwrites a job that completed between its read and its write",
        "peer_bugs/test_rescues::test_completions_against_rescues",
        "model/test_life_cycle::test_any_interleaving_of_two_workers",
    ),
    _row(
        "the rescuer's first page is full of jobs that are never rescued, and it stops there",
        "peer_bugs/test_rescues::test_one_dead_worker_behind_many_long_jobs",
    ),
    _row(
        "a claim that was under way at stop locks or moves rows and nobody runs them",
        "worker/test_every_point::test_nothing_is_lost_whatever_happens_at_any_wait",
        "worker/test_interrupted_claims::test_claim",
        "worker/test_interrupted_claims::test_limited_claim",
        "worker/test_every_point::test_the_claim_under_way_is_the_last_one",
    ),
    _row(
        "a worker goes on against a demoted, read-only database",
        "worker/test_restarts::test_a_demoted_server_is_left",
        "faults/test_failover::test_nothing_runs_on_a_standby",
    ),
    _row(
        "cancel does nothing without LISTEN, or across nodes",
        "worker/test_cancel_timing::test_without_notifications_the_next_heartbeat_delivers",
    ),
    _row(
        "a late cancel hits a newer attempt or a job of another schema",
        "worker/test_cancel_timing::test_a_cancel_in_one_schema_touches_no_other",
        "peer_bugs/test_late_news::test_a_late_cancel_leaves_a_newer_attempt_alone",
        "model/test_life_cycle::test_any_interleaving_of_two_workers",
    ),
    _row(
        "missed or replayed schedules after a crash, a change of clock, or a long stop",
        "values/test_cron::test_agrees_with_a_scan_of_every_minute",
        "values/test_timetable::test_a_fleet_runs_each_occurrence_once",
        "worker/test_scheduler_fleet::test_the_schedule_of_a_killed_worker_goes_on",
        "worker/test_scheduler::test_down_over_three_occurrences",
        "faults/test_clock::test_clocks_of_workers_jump_by_an_hour",
    ),
    _row(
        "a schedule changed in the database is not picked up by running workers",
        "client/test_schedules::test_a_running_worker_hears_of_changes",
        "worker/test_scheduler::test_a_pause_and_its_end_are_heard",
    ),
    _row(
        "a stale worker ends a newer attempt; a limit-1 job runs several times",
        "worker/test_crashes::test_a_frozen_worker_that_comes_back_changes_nothing",
        "worker/test_stale::test_whatever_a_stale_worker_says_changes_nothing",
        "worker/test_stale::test_a_limit_of_one_holds_while_a_stale_worker_comes_back",
    ),
    _row(
        "a limit is exceeded when a job runs long, when claimers race, or while a job is being cancelled",
        "store/test_limits::test_thirty_two_claimers_at_once",
        "worker/test_limits::test_four_workers_reach_the_limit_and_never_exceed_it",
        "worker/test_limits::test_nothing_that_happens_to_jobs_lets_the_limit_be_exceeded",
    ),
    _row("prefetch breaks serial order", "worker/test_serialized::test_serialized_jobs_run_one_by_one_in_order"),
    _row(
        "ids or attempt counters overflow 32 bits",
        "store/test_claims::test_numbers_beyond_32_bits",
        "peer_bugs/test_attempts::test_one_attempt_too_many_in_a_batch",
        "peer_bugs/test_attempts::test_the_last_attempt_that_can_be_counted",
    ),
    _row(
        "a key stays taken after rollback, or two transactions both pass the check",
        reason="there are no keys that exclude jobs",
    ),
    _row(
        "a half-open connection is not noticed; LISTEN silently dead",
        "worker/test_silence::test_a_deaf_listener_is_noticed",
    ),
    _row(
        "a process with the same host and pid after a restart makes orphans look alive",
        "peer_bugs/test_rescues::test_a_worker_is_never_taken_for_the_one_before",
    ),
    _row(
        "every worker wakes for every enqueue",
        "worker/test_many_workers::test_ten_idle_workers_and_one_enqueue_a_second",
        "client/test_enqueue::test_only_sleepers_are_notified",
        "peer_bugs/test_wakes::test_fifty_idle_workers",
    ),
    _row(
        "a plan flips after ANALYZE on an empty table",
        "store/test_plans::test_a_claim_walks_the_index_of_lanes",
        "store/test_plans::test_what_a_claim_reads_does_not_grow_with_the_queue",
        "store/test_million::test_what_claims_and_counts_read_does_not_grow_with_a_million",
    ),
    _row(
        "a timed-out or stopped job is settled while its handler still runs",
        "worker/test_cancel::test_a_handler_that_ignores_its_cancellation_is_reported_and_waited_for",
        "peer_bugs/test_settling::test_a_job_is_settled_only_when_its_handler_has_ended",
    ),
    _row(
        "retention deletes jobs that are not finished",
        "worker/test_retention::test_no_retention_under_load",
        "store/test_sweeping::test_nothing_is_taken_from_jobs_that_have_not_ended",
    ),
    _row(
        "the lease is lost with one connection and the job goes on",
        "worker/test_silence::test_a_worker_that_only_cannot_beat_loses_its_lease",
    ),
    _row(
        "a job that kills its process loops for ever",
        "worker/test_crashes::test_a_job_that_kills_its_workers_ends_as_failed",
    ),
    _row(
        "connections shared after fork",
        "db/test_failures::test_fork",
        "client/test_sync_queries::test_a_forked_child_has_a_connection_of_its_own",
    ),
    _row(
        "the heartbeat stops when the graceful stop begins",
        "peer_bugs/test_stops::test_a_job_longer_than_the_lease_during_the_stop",
    ),
    _row("hundreds of workers' heartbeats contend", "peer_bugs/test_rescues::test_hundreds_of_workers_beat_at_once"),
    _row(
        "counts for a dashboard bring the database down",
        "store/test_counts::test_what_a_count_reads_does_not_grow_with_the_queue",
        "store/test_million::test_what_claims_and_counts_read_does_not_grow_with_a_million",
    ),
    _row(
        "small control tables bloat too",
        "store/test_limits::test_a_held_snapshot_does_not_slow_limited_claims",
        "store/test_held_snapshot::test_a_held_snapshot_does_not_slow_promotion",
        "store/test_strict_order::test_a_held_snapshot_does_not_slow_serialized_claims",
        "peer_bugs/test_bloat::test_control_tables_do_not_grow_with_the_jobs",
    ),
    _row(
        "a worker cannot exit while the database is slow or locked",
        "faults/test_locked::test_workers_stop_although_a_table_is_locked",
    ),
    _row(
        "nothing recovers after a PostgreSQL restart",
        "worker/test_restarts::test_a_restart_under_load_loses_no_outcome",
        "faults/test_server::test_the_server_goes_away_under_load",
    ),
    _row(
        "an exception in a lookup or decode outside the job's own try kills the worker",
        "worker/test_running::test_jobs_of_other_names_stay_untouched",
        "worker/test_failing::test_an_exception_is_recorded_and_the_others_go_on",
    ),
    _row(
        "a CancelledError that a job did not own stops the worker without any error",
        "worker/test_own_scopes::test_a_leaked_cancelled_error_is_a_failure",
    ),
    _row(
        "SystemExit in a job stops the worker, or loses the job",
        "worker/test_failing::test_even_these_are_only_the_jobs_failure",
        "cli/test_run_survives::test_errors_stay_with_their_job",
    ),
    _row(
        "jobs shielded from their parent run on unleased after the heartbeat died",
        "worker/test_stopping::test_a_service_that_fails_for_good_ends_the_run_with_its_leaf_error",
        "worker/test_service_crashes::test_each_service_that_crashes_ends_every_job",
        "cli/test_run_fails::test_a_stubborn_handler_does_not_keep_a_worker_that_failed",
        "worker/test_silence::test_a_worker_that_is_cut_off_has_ended_its_jobs_before_others_start_them",
    ),
    _row(
        "a job's own shorter timeout is replaced by the stop's grace",
        "peer_bugs/test_stops::test_a_timeout_shorter_than_the_grace",
    ),
    _row(
        "interrupted by a deploy = recorded as cancelled, and lost",
        "worker/test_stopping::test_a_job_longer_than_the_grace_goes_back_to_its_place",
        "cli/test_run_stops::test_a_long_job_goes_back",
    ),
    _row(
        "retries and requeues notify nobody and wait for the next poll",
        "worker/test_failing::test_a_retry_is_the_same_job_later",
        "worker/test_requeueing::test_requeued_jobs_start_at_once",
    ),
    _row(
        "a text of NUL bytes or invalid UTF-8 in an error breaks the outcome's write",
        "worker/test_failing::test_a_text_that_cannot_be_stored_is_stored_all_the_same",
        "values/test_lifecycle::test_error_texts_are_what_postgresql_can_store",
    ),
)
