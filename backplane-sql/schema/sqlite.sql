-- The log of the backplane's SQL bus on SQLite 3.42 and later. Format 2.
--
-- Nodes install this by themselves. With `create=false` they do not, and an operator runs it once, on a file of its own:
--
--     sqlite3 backplane.db < sqlite.sql
--
-- The names `backplane_log` and `backplane_meta` are those of the default `table=backplane`; for `table=chat` write
-- `chat_log` and `chat_meta`. Everything may be run again; it changes nothing that is there.
--
-- A node needs to read and write the file, and to make files beside it (`-wal` and `-shm`): the privilege to write in its
-- folder. All nodes run on one host: the file must not lie on a network file system. Give the log a file of its own: what
-- else is written into the same file waits for the log's writers, and they for it.

-- Stays with the file; readers and the writer do not wait for each other then.
PRAGMA journal_mode = WAL;

-- One row for the frames that a node sent one after the other to one topic: several where they are small, else one.
-- Nothing is ever updated.
CREATE TABLE IF NOT EXISTS backplane_log (
    -- Never given twice, also not after the newest rows were deleted. There is one writer at a time, so this is the order
    -- of the commits.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- Which link wrote it: 16 bytes of a node and one of its attempts to connect.
    writer BLOB NOT NULL,
    -- The writer's own number of the row, from 1, without holes: by it a row is written once though it is sent twice,
    -- and a reader can prove that one is missing.
    seq INTEGER NOT NULL,
    -- A hash of the topic: which rows a reader wants is decided by it.
    key INTEGER NOT NULL,
    -- Milliseconds since 1970, by the clock of this machine. Retention goes by it.
    at INTEGER NOT NULL DEFAULT (CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)),
    topic BLOB NOT NULL,
    -- Last, so that what stands before it is read without it.
    -- One after the other, each behind its length in four bytes (the highest first).
    frames BLOB NOT NULL,
    UNIQUE (writer, seq)
);

-- One row about the log.
CREATE TABLE IF NOT EXISTS backplane_meta (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    -- The format of both tables. A node that knows another one refuses to start.
    version INTEGER NOT NULL,
    -- Drawn when the log was installed. A reader that comes back to another epoch, because the file was replaced, knows
    -- that its place is gone.
    epoch BLOB NOT NULL,
    -- The node that deletes, and until when, in milliseconds since 1970.
    holder BLOB,
    lease_until INTEGER
);

INSERT INTO backplane_meta (one, version, epoch) VALUES (1, 2, randomblob(16)) ON CONFLICT DO NOTHING;
