-- The log of the backplane's SQL bus on SQL Server 2016 and later and Azure SQL Database. Format 2.
--
-- Nodes install this by themselves, one after the other. With `create=false` they do not, and an operator runs it once:
--
--     sqlcmd -d mine -i mssql.sql
--
-- The names `backplane_log` and `backplane_meta` are those of the default `table=backplane`; for `table=chat` write
-- `chat_log` and `chat_meta`, for `schema=realtime` put `realtime.` before them and create that schema first. Everything
-- may be run again; it changes nothing that is there.
--
-- Least privileges of a node's user, with `create=false`:
--
--     GRANT SELECT, INSERT, DELETE ON backplane_log TO node;
--     GRANT SELECT, UPDATE ON backplane_meta TO node;
--
-- With `create=true` the user needs CREATE TABLE and ALTER on the schema besides (CREATE SCHEMA, when that is to be made).
--
-- What belongs to the whole database, and is the operator's:
--   compatibility level       130 at least: rows travel as JSON and bytes.
--   READ_COMMITTED_SNAPSHOT   ON is recommended (Azure has it on): readers then never wait for writers, nor for each other's
--                             deletions. Nodes say once when it is off.
--                             ALTER DATABASE mine SET READ_COMMITTED_SNAPSHOT ON WITH ROLLBACK IMMEDIATE;
--   DELAYED_DURABILITY        ALLOWED makes `durability=relaxed` take effect; where it is DISABLED, rows are durable.

-- One row for the frames that a node sent one after the other to one topic: several where they are small, else one.
-- Nothing is ever updated.
IF OBJECT_ID(N'backplane_log', N'U') IS NULL
CREATE TABLE backplane_log (
    -- Ascending in the order in which rows began to be written, which is not the order in which they were committed.
    -- A number that is missing belongs to a row that is not committed yet, or never will be; a restart may skip thousands.
    id bigint IDENTITY(1, 1) NOT NULL PRIMARY KEY CLUSTERED,
    -- Which link wrote it: 16 bytes of a node and one of its attempts to connect.
    writer binary(16) NOT NULL,
    -- The writer's own number of the row, from 1, without holes: by it a row is written once though it is sent twice,
    -- and a reader can prove that one is missing.
    seq bigint NOT NULL,
    -- A hash of the topic: which rows a reader wants is decided by it.
    [key] bigint NOT NULL,
    -- Bytes, not text: case and trailing blanks matter.
    topic varbinary(max) NOT NULL,
    -- One after the other, each behind its length in four bytes (the highest first).
    frames varbinary(max) NOT NULL,
    -- UTC, by the clock of this server. Retention goes by it.
    at datetime2(6) NOT NULL DEFAULT SYSUTCDATETIME(),
    UNIQUE NONCLUSTERED (writer, seq)
);

-- One row about the log.
IF OBJECT_ID(N'backplane_meta', N'U') IS NULL
CREATE TABLE backplane_meta (
    one int NOT NULL PRIMARY KEY CLUSTERED,
    -- The format of both tables. A node that knows another one refuses to start.
    version int NOT NULL,
    -- Drawn when the log was installed. A reader that comes back to another epoch knows that its place is gone.
    epoch binary(16) NOT NULL,
    -- With `order=total` each batch counts on, and thereby holds this row until it is committed.
    turn bigint NOT NULL DEFAULT 0,
    -- The node that deletes, and until when (UTC).
    holder binary(16) NULL,
    lease_until datetime2(6) NULL
);

IF NOT EXISTS (SELECT 1 FROM backplane_meta WHERE one = 1)
INSERT INTO backplane_meta (one, version, epoch) VALUES (1, 2, CAST(NEWID() AS binary(16)));
