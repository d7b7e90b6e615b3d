-- The bank's tables, one set per shard. No name is qualified: `atoll schema apply -f FILE` runs
-- this once in every shard's schema, and may run it again.

CREATE TABLE IF NOT EXISTS accounts (
    user_id text   PRIMARY KEY,
    -- What it was opened with: money is made here and nowhere else, so that anyone can add up.
    opened  bigint NOT NULL CHECK (opened >= 0),
    balance bigint NOT NULL CHECK (balance >= 0)
);

CREATE TABLE IF NOT EXISTS transfers (
    -- The idempotency key that the client chose.
    id     text        PRIMARY KEY,
    payer  text        NOT NULL,
    payee  text        NOT NULL,
    amount bigint      NOT NULL CHECK (amount > 0),
    at     timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX IF NOT EXISTS transfers_payer ON transfers (payer, at);
CREATE INDEX IF NOT EXISTS transfers_payee ON transfers (payee, at);

-- One row per canary, counted up by each write of it.
CREATE TABLE IF NOT EXISTS canary (
    id text   PRIMARY KEY,
    n  bigint NOT NULL
);
