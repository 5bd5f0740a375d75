"""The tables and statements of `sequential.stores.sqlite`."""

from ..storage import Record

SCHEMA = 1
"""The version of the tables below; a file with a newer one is refused."""

TABLES = """
CREATE TABLE IF NOT EXISTS sequential_schema (version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS sequential_executions (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE, run TEXT NOT NULL, workflow TEXT NOT NULL, version INTEGER, first_input INTEGER,
    token INTEGER NOT NULL, step INTEGER NOT NULL, status TEXT NOT NULL, due REAL, lease REAL NOT NULL,
    attempts INTEGER NOT NULL, error TEXT, wake REAL, waits TEXT, changed REAL NOT NULL, owner TEXT, rings REAL
);
CREATE INDEX IF NOT EXISTS sequential_due ON sequential_executions (rings) WHERE rings IS NOT NULL;
CREATE TABLE IF NOT EXISTS sequential_results (
    position INTEGER PRIMARY KEY, asked TEXT NOT NULL, fingerprint INTEGER, started REAL, ended REAL, error TEXT,
    data BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS sequential_signals (
    execution INTEGER NOT NULL, name TEXT NOT NULL, data BLOB, PRIMARY KEY (execution, name)
);
CREATE VIEW IF NOT EXISTS sequential_steps AS
    SELECT key, id, run, token AS held_token, token, e.step, status, due, lease, attempts, e.error AS record_error,
        wake, waits, changed, (position & 4294967295) - 1 AS result_step, asked, fingerprint, data, started, ended,
        r.error
    FROM sequential_executions AS e JOIN sequential_results AS r
    ON r.position > e.key << 32 AND r.position < (e.key + 1) << 32;
CREATE TRIGGER IF NOT EXISTS sequential_commit INSTEAD OF INSERT ON sequential_steps BEGIN
    UPDATE sequential_executions
        SET token = NEW.token, step = NEW.step, status = NEW.status, lease = NEW.lease, attempts = NEW.attempts,
            error = NEW.record_error, wake = NEW.wake, waits = NEW.waits, changed = NEW.changed
        WHERE key = NEW.key AND run = NEW.run AND token = NEW.held_token AND rings = -1 AND due IS NEW.due;
    SELECT RAISE(ABORT, 'fenced') WHERE changes() = 0;
    INSERT OR REPLACE INTO sequential_results (position, asked, fingerprint, data, started, ended, error) VALUES (
        (NEW.key << 32) + 1 + NEW.result_step, NEW.asked, NEW.fingerprint, NEW.data, NEW.started, NEW.ended, NEW.error
    );
END
"""
# A result's position is its execution's key shifted left by 32 bits, plus its step plus 1: the results of an execution
# lie side by side in one tree, where a key of several columns would need a second one and could not be read piecewise.
# Position 0 keeps the execution's input, out of the row that every commit writes anew.  The data comes last in the
# table, or SQLite would build all of a large one in memory before a piece of it is written.
#
# An execution rings at -1 while it is held, for only its owner's death, or the end of a lease that every commit moves,
# makes it late; then when it is due.
#
# The trigger makes one statement, and so one transaction without BEGIN and COMMIT, of a commit that goes on with the
# next step: no index changes then, and not to mention indexed columns is what keeps SQLite from writing them.

INPUT = -1
LAST = (1 << 32) - 1
KEY = "(SELECT key FROM sequential_executions WHERE id = ? AND run = ?)"
_HELD_BY = " WHERE id = ? AND run = ? AND token = ?"
SELECT = (
    "SELECT id, run, workflow, (SELECT data FROM sequential_results WHERE position = key << 32), version, first_input, "
    "token, step, status, due, lease, attempts, error, wake, waits, changed, owner FROM sequential_executions"
)
FIND = f"{SELECT} WHERE id = ?"
_CHANGING = (*Record._fields[6:], "owner", "rings")
_ALL = ("id", "run", "workflow", "version", "first_input", *_CHANGING)
INSERT = f"INSERT INTO sequential_executions ({', '.join(_ALL)}) VALUES ({', '.join('?' * len(_ALL))})"
UPDATE = f"UPDATE sequential_executions SET {' = ?, '.join(_CHANGING)} = ?{_HELD_BY}"
REPLACE = f"UPDATE sequential_executions SET {' = ?, '.join(_ALL)} = ? WHERE key = ?"
_STEPS = (
    f"INSERT INTO sequential_steps VALUES (?, NULL, {'?, ' * 4}'running', ?, ?, 0, NULL, NULL, NULL, {'?, ' * 7}%s)"
)
STEP, FAILED_STEP = _STEPS % "NULL", _STEPS % "?"
_RESULT = (
    "INSERT OR REPLACE INTO sequential_results (position, asked, fingerprint, data, started, ended, error) "
    f"VALUES (({KEY} << 32) + 1 + ?, ?, ?, %s, ?, ?, ?)"
)
SMALL, LARGE = _RESULT % "?", _RESULT % "zeroblob(?)"
HELD = f"SELECT key FROM sequential_executions{_HELD_BY}"
SIGNAL = f"INSERT OR IGNORE INTO sequential_signals VALUES ({KEY}, ?, ?)"
_NAMED = f" WHERE execution = {KEY} AND name = ?"
PENDING = f"SELECT data FROM sequential_signals{_NAMED}"
OPEN = f"DELETE FROM sequential_signals{_NAMED}"
TAKE = f"UPDATE sequential_signals SET data = NULL{_NAMED}"
_RESULTS = (
    "SELECT (position & 4294967295) - 1, asked, fingerprint, CASE WHEN length(data) <= ? THEN data END%s "
    f"FROM sequential_results WHERE position > ({KEY} << 32) + ? AND position <= ({KEY} << 32) + ? ORDER BY position"
)
BRIEF, WHOLE = _RESULTS % "", _RESULTS % ", started, ended, error"
