"""Brings in jobs of limited names: a claimer of their own, so that limits neither delay nor slow the other names.

Jobs whose handlers run in processes are the worker's own business and no limit of the fleet's, but they too can start
only when there is something for them. So their names are among those of this claimer (``_process_room.py``).

One claim is for all names that may have something, in one round trip: it tries their locks, then counts and takes. What
a name has to wait for decides when it is asked for again:

- its lock is held by another worker: a moment;
- it is full: until a slot is free. Slots of our own jobs are known when their outcome is stored; other workers say so
  when they free a slot and do not take it themselves;
- its next token is not due: until it is;
- all processes of this worker are busy, and it needs one: until one is free;
- it has nothing queued: until a notification, as for other names (the row of the worker lists such names).

Its claims take jobs of the other names along, so that all start in one order (the *turn* of ``_holdings.py``).

Nothing depends on notifications: each name is looked at again after the poll interval, by the claimer of the other
names as long as that one idles, for all in one statement. Names are found in memory of the
registered limits, but what they allow is read by each claim: the database's definition holds.
"""

from .claimer import LimitedClaimer
from .service import run_limited

__all__ = ["LimitedClaimer", "run_limited"]
