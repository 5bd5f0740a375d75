"""The tables and statements of `sequential.stores.postgres`: each a single statement, and so one transaction."""

from __future__ import annotations

from ..storage import CLOSED, Record

SCHEMA = 1
"""The version of the tables below; newer ones are refused."""

PAGE = 1 << 20
"""Bytes after which a page of results ends."""

FIELDS = ", ".join(Record._fields)
CHANGING = " = %s, ".join(Record._fields[6:])
OPEN = f"status NOT IN ({', '.join(repr(status) for status in sorted(CLOSED))})"


class Statements:
    """All SQL, for tables of one prefix.

    An execution rings at -1 while it is held, so that a commit which only moves the lease's end changes no index and
    its row can be written beside the old one.  The names of signals stand in the execution's row: whoever waits for
    that row sees what another has just written there, but not what is new in another table.

    Args:
        p: The prefix.
    """

    def __init__(self, p: str) -> None:
        self.version = f"SELECT version FROM {p}schema"
        self.there = f"SELECT current_setting('server_encoding'), to_regclass('{p}schema')::text"
        self.tables = f"""
CREATE TABLE IF NOT EXISTS {p}schema (version integer NOT NULL);
CREATE TABLE IF NOT EXISTS {p}executions (
    key bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    id text COLLATE "C" PRIMARY KEY,
    run text NOT NULL, workflow text NOT NULL, input bytea NOT NULL, version bigint, first_input bigint,
    token bigint NOT NULL, step integer NOT NULL, status text NOT NULL, due float8, lease float8 NOT NULL,
    attempts integer NOT NULL, error text, wake float8, waits text, changed float8 NOT NULL, rings float8,
    pending text[] NOT NULL DEFAULT '{{}}', closed text[] NOT NULL DEFAULT '{{}}'
) WITH (fillfactor = 70);
CREATE INDEX IF NOT EXISTS {p}due ON {p}executions (rings) WHERE rings IS NOT NULL;
CREATE TABLE IF NOT EXISTS {p}results (
    key bigint, step integer, part integer, parts integer, asked text, fingerprint bigint,
    data bytea NOT NULL, started float8, ended float8, error text,
    PRIMARY KEY (key, step, part)
);
CREATE TABLE IF NOT EXISTS {p}signals (
    key bigint, name text, data bytea NOT NULL, PRIMARY KEY (key, name)
);
CREATE OR REPLACE VIEW {p}history AS
    SELECT e.id, e.workflow, e.status, h.step, h.asked, to_timestamp(h.started) AS started,
        to_timestamp(h.ended) AS ended, h.error, convert_from((
            SELECT string_agg(r.data, '' ORDER BY r.part) FROM {p}results AS r
            WHERE r.key = h.key AND r.step = h.step AND r.part < h.parts
        ), 'UTF8')::json AS data
    FROM {p}executions AS e JOIN {p}results AS h ON h.key = e.key AND h.part = 0;
INSERT INTO {p}schema SELECT {SCHEMA} WHERE NOT EXISTS (SELECT FROM {p}schema);
"""
        known = f"(SELECT max(version) FROM {p}schema) <= {SCHEMA}"
        held = "WHERE id = %s AND run = %s AND token = %s"
        key = f"(SELECT key FROM {p}executions WHERE id = %s AND run = %s)"
        result = f"""
            INSERT INTO {p}results (key, step, part, parts, asked, fingerprint, data, started, ended, error)
            SELECT key, %s, %s, %s, %s, %s, %s, %s, %s, %s FROM held ON CONFLICT (key, step, part) DO UPDATE SET
                parts = EXCLUDED.parts, asked = EXCLUDED.asked, fingerprint = EXCLUDED.fingerprint,
                data = EXCLUDED.data, started = EXCLUDED.started, ended = EXCLUDED.ended, error = EXCLUDED.error
        """
        # A claim that a power cut undoes does no harm, so its end does not wait for the disk; a creation's does.
        self.claim = f"""
            WITH taken AS (
                UPDATE {p}executions SET token = token + 1, lease = %s, rings = -1
                WHERE id = %s AND lease <= %s AND (%s OR (run = %s AND step <= %s)) AND {OPEN} AND {known} RETURNING *
            ), created AS (
                INSERT INTO {p}executions ({FIELDS}, rings) SELECT {"%s, " * len(Record._fields)} %s
                WHERE %s AND {known} AND NOT EXISTS (SELECT FROM {p}executions WHERE id = %s)
                ON CONFLICT DO NOTHING RETURNING *
            ), found AS (
                SELECT true, {FIELDS}, set_config('synchronous_commit', 'off', true) FROM taken
                UNION ALL SELECT true, {FIELDS}, NULL FROM created
                UNION ALL SELECT false, {FIELDS}, NULL FROM {p}executions
                    WHERE id = %s AND NOT EXISTS (SELECT FROM taken) AND NOT EXISTS (SELECT FROM created)
            )
            SELECT s.version, found.* FROM {p}schema AS s LEFT JOIN found ON true
        """
        update = f"UPDATE {p}executions SET {CHANGING} = %s, rings = %s"
        waits, free = ", closed = array_remove(closed, %s)", "AND %s <> ALL (pending)"
        takes = ", pending = array_remove(pending, %s), closed = closed || %s::text"
        gone = f", gone AS (DELETE FROM {p}signals AS s USING held WHERE s.key = held.key AND name = %s)"
        self.commit = {
            (saves, absent, taken): f"""
                WITH held AS ({update}{waits * absent}{takes * taken} {held} {free * absent} RETURNING key)
                {gone * taken} {result if saves else "SELECT FROM held"}
            """
            for saves in (False, True)
            for absent in (False, True)
            for taken in (False, True)
        }
        """By whether a result, a signal that must not have come, and one that is used up, belong to it."""
        self.step = f"""
            WITH held AS (
                UPDATE {p}executions SET token = %s, step = %s, due = %s, lease = %s, changed = %s, status = 'running',
                    attempts = 0, error = NULL, wake = NULL, waits = NULL, rings = -1 {held} RETURNING key
            ) {result.partition("ON CONFLICT")[0].replace("%s, %s, %s,", "%s, 0, 1,", 1)}
        """
        """What `commit` is for most steps, in half the time: few values, and no provision for a result saved ahead."""
        self.save = f"WITH held AS (SELECT key FROM {p}executions {held} FOR SHARE) {result}"
        self.restart = f"""
            WITH held AS (
                UPDATE {p}executions SET {" = %s, ".join(Record._fields)} = %s, rings = %s, closed = '{{}}' {held}
                RETURNING key
            ), gone AS (DELETE FROM {p}results AS r USING held WHERE r.key = held.key)
            SELECT FROM held
        """
        self.results, self.brief_results = (
            f"""
                SELECT step, asked, fingerprint, CASE WHEN parts = 1 THEN data END, {about} FROM (
                    SELECT *, sum(octet_length(data)) OVER (ORDER BY step ROWS UNBOUNDED PRECEDING) AS size
                    FROM {p}results
                    WHERE key = {key} AND step >= %s AND step < %s AND part = 0 ORDER BY step LIMIT 2000
                ) AS page WHERE size - octet_length(data) < {PAGE} ORDER BY step
            """
            for about in ("started, ended, error", "NULL, NULL, NULL")
        )
        self.part = f"SELECT data, parts FROM {p}results WHERE key = {key} AND step = %s AND part = %s"
        self.read = f"SELECT {FIELDS} FROM {p}executions WHERE id = %s"
        self.due = f"""
            (SELECT {FIELDS} FROM {p}executions WHERE rings = -1 AND lease <= %s ORDER BY lease LIMIT %s) UNION ALL
            (SELECT {FIELDS} FROM {p}executions WHERE rings > -1 AND rings <= %s ORDER BY rings LIMIT %s)
        """
        self.find = f"SELECT {FIELDS} FROM {p}executions WHERE %s ORDER BY id LIMIT %%s"
        ripe = "waits = %s AND lease = 0"
        self.signal = f"""
            WITH kept AS (
                UPDATE {p}executions SET pending = pending || %s::text,
                    due = CASE WHEN {ripe} THEN %s ELSE due END, rings = CASE WHEN {ripe} THEN %s ELSE rings END
                WHERE id = %s AND {OPEN} AND %s <> ALL (pending || closed) RETURNING *
            ), data AS (INSERT INTO {p}signals SELECT key, %s, %s FROM kept)
            SELECT true, {FIELDS} FROM kept UNION ALL
            SELECT false, {FIELDS} FROM {p}executions WHERE id = %s AND NOT EXISTS (SELECT FROM kept)
        """
        self.received = f"SELECT data FROM {p}signals WHERE key = {key} AND name = %s"
        self.remove, self.remove_held = (
            f"""
                WITH gone AS (DELETE FROM {p}executions {which} RETURNING key),
                    results AS (DELETE FROM {p}results AS r USING gone WHERE r.key = gone.key),
                    signals AS (DELETE FROM {p}signals AS s USING gone WHERE s.key = gone.key)
                SELECT {found} FROM gone
            """
            for which, found in (("WHERE id = %s", "key"), (held, ""))
        )
        self.remove_rest = f"""
            WITH signals AS (DELETE FROM {p}signals WHERE key = %s) DELETE FROM {p}results WHERE key = %s
        """
