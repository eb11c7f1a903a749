-- PostgreSQL 18: virtual columns, constraints by name or without force, temporal keys.
CREATE TABLE app.computed (a int, b int GENERATED ALWAYS AS (a * 2) VIRTUAL, c int GENERATED ALWAYS AS (a + 1) STORED); INSERT INTO app.computed (a) VALUES (1), (NULL);
CREATE TABLE app.only_virtual (v int GENERATED ALWAYS AS (40 + 2) VIRTUAL); INSERT INTO app.only_virtual DEFAULT VALUES;
CREATE TABLE app.named_null (a int CONSTRAINT "a; is ""there""" NOT NULL, b int); INSERT INTO app.named_null VALUES (1, NULL); COMMENT ON CONSTRAINT "a; is ""there""" ON app.named_null IS 'not null';
ALTER TABLE app.named_null ADD CONSTRAINT b_there NOT NULL b NOT VALID;
CREATE TABLE app.lax (a int CHECK (a > 0) NOT ENFORCED, item bigint REFERENCES app.items NOT ENFORCED); INSERT INTO app.lax VALUES (-1, -77);
CREATE TABLE app.temporal (part int4range, valid daterange, PRIMARY KEY (part, valid WITHOUT OVERLAPS)); INSERT INTO app.temporal VALUES ('[1,2)', '[2025-01-01,2026-01-01)'), ('[1,2)', '[2026-01-01,2027-01-01)');
CREATE TABLE app.temporal_child (part int4range, valid daterange, FOREIGN KEY (part, PERIOD valid) REFERENCES app.temporal (part, PERIOD valid)); INSERT INTO app.temporal_child VALUES ('[1,2)', '[2025-06-01,2026-06-01)');
CREATE COLLATION app.builtin (PROVIDER = builtin, LOCALE = 'PG_UNICODE_FAST');

