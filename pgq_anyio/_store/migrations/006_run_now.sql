-- Whether an operator has asked for a run since the schedule was paused, if it is: that run is not held back by the pause.
alter table {schema}.schedule add column asked_for boolean not null default false;
