-- What PostgreSQL 18 adds.
create table zoo.virtual (a int, b int generated always as (a * 2) virtual, c int constraint "must; be" not null);
insert into zoo.virtual (a, c) select g, g from generate_series(1, 100) g;
create table zoo.only_virtual (a int generated always as (1) virtual);
insert into zoo.only_virtual default values;
create table zoo.unproved (a int);
insert into zoo.unproved values (null);
alter table zoo.unproved add constraint later not null a not valid;
