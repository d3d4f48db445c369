-- The log of the backplane's SQL bus on MySQL 5.7 and later and MariaDB 10.3 and later. Format 2.
--
-- Nodes install this by themselves: each statement can be run again and by many at once, and changes nothing that is
-- there. With `create=false` they do not, and an operator runs it once:
--
--     mysql --database=mine < mysql.sql
--
-- The names `backplane_log` and `backplane_meta` are those of the default `table=backplane`; for `table=chat` write
-- `chat_log` and `chat_meta`.
--
-- Least privileges of a node's user, with `create=false`:
--
--     GRANT SELECT, INSERT, UPDATE, DELETE ON mine.backplane_log TO node;
--     GRANT SELECT, UPDATE ON mine.backplane_meta TO node;
--
-- Nothing is ever updated in the log: UPDATE is what the server asks for `ON DUPLICATE KEY UPDATE id = id`, by which rows
-- that were sent before are skipped when they are sent again. With `create=true` the user needs CREATE on the database besides.
--
-- What belongs to the whole server, and is the operator's:
--   max_allowed_packet               largest frame: at least 1 MiB is needed.
--   innodb_flush_log_at_trx_commit   1: a row that was accepted survives a crash of the machine. With 0 or 2 the last second
--                                    may be gone after one; nodes notice it and tell of a loss. No session can choose it.
--   innodb_autoinc_lock_mode         any. Each statement takes its ids at once, so they ascend within it.
--   binlog_format                    ROW or MIXED. With STATEMENT the server refuses rows written in READ COMMITTED.
--   transaction_isolation            any; sessions of nodes choose READ COMMITTED.
--
-- Galera and group replication: all nodes of an application must use one and the same server, for its ids are handed out
-- per server and rows arrive at the others later. Another server may take over at any time: its nodes connect again.

-- One row for the frames that a node sent one after the other to one topic: several where they are small, else one.
CREATE TABLE IF NOT EXISTS `backplane_log` (
    -- Ascending in the order in which rows began to be written, which is not the order in which they were committed.
    -- A number that is missing belongs to a row that is not committed yet, or never will be. Servers before MySQL 8.0
    -- and MariaDB 10.2 forget the next number when they restart and go on after the largest one that is there: the
    -- newest row is therefore never deleted.
    `id` BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    -- Which link wrote it: 16 bytes of a node and one of its attempts to connect.
    `writer` BINARY(16) NOT NULL,
    -- The writer's own number of the row, from 1, without holes: by it a row is written once though it is sent twice,
    -- and a reader can prove that one is missing.
    `seq` BIGINT NOT NULL,
    -- A hash of the topic: which rows a reader wants is decided by it.
    `key` BIGINT NOT NULL,
    -- Bytes, not text: case and trailing blanks matter.
    `topic` MEDIUMBLOB NOT NULL,
    -- One after the other, each behind its length in four bytes (the highest first).
    `frames` LONGBLOB NOT NULL,
    -- UTC, by the clock of this server. Retention goes by it.
    `at` DATETIME(6) NOT NULL,
    UNIQUE KEY `writer_seq` (`writer`, `seq`)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARSET = utf8mb4;

-- One row about the log. With `order=total` each batch is written while it holds this row.
CREATE TABLE IF NOT EXISTS `backplane_meta` (
    `one` INT NOT NULL PRIMARY KEY,
    -- The format of both tables. A node that knows another one refuses to start.
    `version` INT NOT NULL,
    -- Drawn when the log was installed. A reader that comes back to another epoch knows that its place is gone.
    `epoch` BINARY(16) NOT NULL,
    -- The node that deletes, and until when (UTC).
    `holder` BINARY(16) NULL,
    `lease_until` DATETIME(6) NULL
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARSET = utf8mb4;

INSERT INTO `backplane_meta` (`one`, `version`, `epoch`)
VALUES (1, 2, UNHEX(LEFT(SHA2(CONCAT(UUID(), RAND(), UTC_TIMESTAMP(6)), 256), 32)))
ON DUPLICATE KEY UPDATE `one` = `one`;
