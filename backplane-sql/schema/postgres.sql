-- The log of the backplane's SQL bus on PostgreSQL 13 and later. Format 2.
--
-- Nodes install this by themselves (under an advisory lock, so ten at once are no trouble). With `create=false` they
-- do not, and an operator runs it once:
--
--     psql --single-transaction --file postgres.sql "$DATABASE"
--
-- The names `backplane_log` and `backplane_meta` are those of the default `table=backplane`; for `table=chat` write
-- `chat_log` and `chat_meta`. For `schema=realtime`, run it with `SET search_path TO realtime`. Everything may be run
-- again; it changes nothing that is there.
--
-- Least privileges of a node's user, with `create=false`:
--
--     GRANT CONNECT ON DATABASE mine TO node;
--     GRANT USAGE ON SCHEMA realtime TO node;                       -- where the tables are not in `public`
--     GRANT SELECT, INSERT, DELETE ON backplane_log TO node;
--     GRANT SELECT, UPDATE ON backplane_meta TO node;
--
-- Deleting is the retention: whichever node holds the lease in `backplane_meta` deletes, in steps of a few hundred rows,
-- what is older than `retention` or beyond `retention_rows`. LISTEN and NOTIFY need no privilege. With `create=true` the
-- user needs CREATE on the schema besides (and on the database, when the schema is to be made too).

-- One row for the frames that a node sent one after the other to one topic: several where they are small, else one.
-- Nothing is ever updated.
CREATE TABLE IF NOT EXISTS backplane_log (
    -- Ascending in the order in which rows began to be written, which is not the order in which they were committed.
    -- A number that is missing belongs to a row that is not committed yet, or never will be.
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Which link wrote it: 16 bytes of a node and one of its attempts to connect.
    writer bytea NOT NULL,
    -- The writer's own number of the row, from 1, without holes: by it a row is written once though it is sent twice,
    -- and a reader can prove that one is missing.
    seq bigint NOT NULL,
    -- A hash of the topic: which rows a reader wants is decided by it.
    key bigint NOT NULL,
    topic bytea NOT NULL,
    -- One after the other, each behind its length in four bytes (the highest first).
    frames bytea NOT NULL,
    -- By the clock of this server. Retention goes by it.
    at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (writer, seq)
) WITH (
    -- Rows of several frames stay in the page: two of them fill it.
    toast_tuple_target = 4080,
    -- Each row lives for a minute or so: dead ones are cleared by number, not by their share of the table, and without
    -- rests in between. A transaction that stays open for long anywhere in this database keeps them all the same.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 100000,
    autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0,
    toast.autovacuum_vacuum_threshold = 10000,
    toast.autovacuum_vacuum_cost_delay = 0
);

-- Frames are not compressed: they live too briefly for it to pay.
ALTER TABLE backplane_log ALTER COLUMN frames SET STORAGE EXTERNAL;

-- One row about the log.
CREATE TABLE IF NOT EXISTS backplane_meta (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    -- The format of both tables. A node that knows another one refuses to start.
    version integer NOT NULL,
    -- Drawn when the log was installed. A reader that comes back to another epoch knows that its place is gone. Where a
    -- crash (durability=relaxed), a restore or a failover took the end of the log away, the epoch stays as it is: there a
    -- reader notices that the row which it read last is not there any more, or that the numbers went back.
    epoch bytea NOT NULL,
    -- The node that deletes, and until when.
    holder bytea,
    lease_until timestamptz
) WITH (fillfactor = 50);

INSERT INTO backplane_meta (version, epoch) VALUES (2, uuid_send(gen_random_uuid())) ON CONFLICT DO NOTHING;
