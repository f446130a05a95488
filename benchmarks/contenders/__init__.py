"""The contenders: ours and the peers, behind one interface, so that every figure asks all of them the same.

Each has one script, which is started anew for every step with a line of JSON as its argument and prints a line of JSON:

- ``fill``: make the tables, and enqueue jobs in calls of ``chunk`` jobs.
- ``drain``: run one worker until ``jobs`` no-op handlers have run, and note the time after every ``every`` of them; end
  early after ``limit`` seconds.
- ``latency``: one job at a time on an idle worker; how long each took from the call of ``enqueue`` to its handler.
- ``serve``: run a worker until SIGTERM; say when it is ready, and from time to time how many handlers have run.

Everybody has the same jobs (100 bytes of payload; graphile-worker's is JSON of that length), the same server, a
database of its own and one worker process. Times are taken inside the scripts, around the call that runs the worker:
connections, registration and the last flush included, the start of the interpreter not.
"""
