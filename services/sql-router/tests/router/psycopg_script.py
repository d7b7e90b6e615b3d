"""What an application with psycopg does, every statement prepared at its first use."""

import sys

import psycopg

dsn, user, other = sys.argv[1:]


def connect(**more):
    return psycopg.connect(dsn, prepare_threshold=1, options=f"-c atoll.key={user}", **more)


with connect() as connection:
    for number in range(5):
        connection.execute("INSERT INTO t VALUES (%s, %s)", (number, f"note {number}"))
    connection.commit()
    rows = connection.execute("SELECT count(*), max(note) FROM t").fetchone()
    assert rows == (5, "note 4"), rows
    connection.rollback()

    # An error, and the transaction after it.
    try:
        connection.execute("INSERT INTO t VALUES (%s)", (1,))
        raise AssertionError("a duplicate was taken")
    except psycopg.errors.UniqueViolation:
        connection.rollback()
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (5,)
    connection.commit()

    # The user of one transaction.
    with connection.transaction():
        connection.execute(f"SET LOCAL atoll.key = '{other}'")
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
        connection.execute("INSERT INTO t VALUES (%s)", (7,))
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (5,)
    connection.commit()

    # The user by a parameter of the statement.
    for who, count in ((user, 5), (other, 1), (user, 5)):
        sql = "/*key=$1*/ SELECT count(*) FROM t WHERE %s::text <> ''"
        assert connection.execute(sql, (who,)).fetchone() == (count,), who
        connection.commit()

    # A nested transaction.
    with connection.transaction():
        connection.execute("INSERT INTO t VALUES (%s)", (10,))
        try:
            with connection.transaction():
                connection.execute("INSERT INTO t VALUES (%s)", (10,))
        except psycopg.errors.UniqueViolation:
            pass
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (6,)
    connection.commit()

    # A server-side cursor.
    with connection.cursor("c") as cursor:
        cursor.execute("SELECT n FROM generate_series(1, 1000) n")
        assert cursor.fetchmany(3) == [(1,), (2,), (3,)]
        assert len(cursor.fetchall()) == 997
    connection.commit()

with connect(autocommit=True) as connection:
    with connection.pipeline() as pipeline:
        cursors = [
            connection.execute("INSERT INTO t VALUES (%s) RETURNING id", (number,))
            for number in range(100, 120)
        ]
        pipeline.sync()
        assert [cursor.fetchone()[0] for cursor in cursors] == list(range(100, 120))

    # A pipeline in which one fails takes back its own implicit transaction.
    try:
        with connection.pipeline():
            connection.execute("INSERT INTO t VALUES (%s)", (200,))
            connection.execute("INSERT INTO t VALUES (%s)", (100,))
            connection.execute("INSERT INTO t VALUES (%s)", (201,))
        raise AssertionError("a duplicate was taken")
    except psycopg.errors.UniqueViolation:
        pass
    found = connection.execute("SELECT count(*) FROM t WHERE id >= 200").fetchone()
    assert found == (0,), found

    with connection.pipeline():
        with connection.transaction():
            connection.execute("INSERT INTO t VALUES (%s)", (300,))
            connection.execute("INSERT INTO t VALUES (%s)", (301,))
    assert connection.execute("SELECT count(*) FROM t WHERE id >= 300").fetchone() == (2,)

    # Binary parameters and results.
    row = connection.execute("SELECT %b::int8, %b::text", (17, "x"), binary=True).fetchone()
    assert row == (17, "x"), row

    # The session's own settings reach what the driver knows of it.
    connection.execute("SET TimeZone = 'Asia/Shanghai'")
    assert str(connection.execute("SELECT now()").fetchone()[0].tzinfo) == "Asia/Shanghai"

    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO t VALUES (%s)", [(n,) for n in range(400, 450)])
    assert connection.execute("SELECT count(*) FROM t WHERE id >= 400").fetchone() == (50,)

with psycopg.connect(dsn, prepare_threshold=1) as connection:
    try:
        connection.execute("SELECT count(*) FROM t")
        raise AssertionError("no key was needed")
    except psycopg.Error as error:
        assert error.sqlstate == "ZA001", error.sqlstate
print("well")
