-- How many changes of the limits of its names a worker has to know of. Its claims without limits say how many it knows, and
-- take nothing if that is not all: a mark that is taken off when the limits are read would be off before they are known.
-- That mark, outdated, stays for workers of the version before, which go on meanwhile.
alter table {schema}.worker add column limit_changes bigint not null default 0;
