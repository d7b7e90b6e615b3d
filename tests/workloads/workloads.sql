-- The tables of the workloads, one set per shard; see examples/bank/schema.sql.

CREATE TABLE IF NOT EXISTS lists (
    key      text   NOT NULL,
    -- From 1, without a gap.
    position bigint NOT NULL,
    element  bigint NOT NULL,
    PRIMARY KEY (key, position)
);

CREATE TABLE IF NOT EXISTS registers (
    key     text   PRIMARY KEY,
    -- How often it was written.
    version bigint NOT NULL
);
