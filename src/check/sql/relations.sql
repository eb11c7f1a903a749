-- Tables and sequences as a dump takes them (tables.sql), by what stands in its way.
WITH relation AS (
  SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) AS name, c.relkind,
    CASE WHEN c.relkind = 'S' THEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
      ELSE pg_catalog.has_table_privilege(c.oid, 'SELECT') END
      AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS readable,
    CASE WHEN c.relkind = 'S' THEN false ELSE pg_catalog.row_security_active(c.oid) END AS filtered,
    c.relpersistence = 'u' AND c.relkind = 'r' AS unlogged
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't'
    AND pg_catalog.left(n.nspname::text, 3) <> 'pg_' AND n.nspname <> 'information_schema'
    AND (EXISTS (SELECT FROM pg_catalog.pg_extension e WHERE c.oid = ANY (e.extconfig))
      OR NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e'))
), found AS (
  SELECT 'table' AS what, name FROM relation WHERE relkind <> 'S'
  UNION ALL SELECT 'unreadable table', name FROM relation WHERE relkind <> 'S' AND NOT readable
  UNION ALL SELECT 'unreadable sequence', name FROM relation WHERE relkind = 'S' AND NOT readable
  UNION ALL SELECT 'filtered', name FROM relation WHERE filtered
  UNION ALL SELECT 'unlogged', name FROM relation WHERE unlogged
)
SELECT what, pg_catalog.count(*), pg_catalog.string_agg(name, ', ' ORDER BY name) FILTER (WHERE nth <= 5)
FROM (SELECT what, name, pg_catalog.row_number() OVER (PARTITION BY what ORDER BY name) AS nth FROM found) AS numbered
GROUP BY what
