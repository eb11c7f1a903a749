-- The same where the server can be asked (PostgreSQL 18).
SELECT pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE NOT readable),
  pg_catalog.string_agg(oid::text, ', ' ORDER BY oid) FILTER (WHERE nth <= 5)
FROM (
  SELECT oid, readable, CASE WHEN NOT readable THEN pg_catalog.row_number() OVER (PARTITION BY readable ORDER BY oid) END AS nth
  FROM (
    SELECT m.oid, pg_catalog.has_largeobject_privilege(m.oid, 'SELECT')
      OR pg_catalog.current_setting('lo_compat_privileges')::boolean AS readable
    FROM pg_catalog.pg_largeobject_metadata m
  ) AS judged
) AS numbered
