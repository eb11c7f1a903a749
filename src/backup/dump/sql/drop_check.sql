-- Does anything else depend on them? Their parts (indexes, row types, owned sequences, members
-- of an extension) go along; a view, a table, a foreign key or a partition made later does not.
DO $pgark$
DECLARE
  dependents text;
BEGIN
  WITH RECURSIVE gone(class, object) AS (
      SELECT class, object FROM pg_temp.pgark_objects
      WHERE class <> 'pg_catalog.pg_namespace'::pg_catalog.regclass
    UNION
      SELECT d.classid, d.objid
      FROM gone g
      JOIN pg_catalog.pg_depend d ON d.refclassid = g.class AND d.refobjid = g.object
      LEFT JOIN pg_catalog.pg_class k
        ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND k.oid = d.objid
      WHERE d.deptype = 'e'
        -- an operator that was only ever named, as another's commutator or negator
        OR (d.classid = 'pg_catalog.pg_operator'::pg_catalog.regclass
          AND EXISTS (SELECT FROM pg_catalog.pg_operator o WHERE o.oid = d.objid AND o.oprcode = 0))
        OR (d.deptype IN ('a', 'i', 'P', 'S', 'x')
          AND coalesce(k.relkind NOT IN ('r', 'p', 'f', 'v', 'm'), true)
          AND (d.classid NOT IN ('pg_catalog.pg_publication_rel'::pg_catalog.regclass)
            OR d.refclassid = 'pg_catalog.pg_publication'::pg_catalog.regclass))
  ), aliens AS (
    SELECT d.classid, d.objid, d.objsubid
    FROM gone g
    JOIN pg_catalog.pg_depend d ON d.refclassid = g.class AND d.refobjid = g.object
    WHERE NOT EXISTS (SELECT FROM gone o WHERE o.class = d.classid AND o.object = d.objid)
  )
  SELECT pg_catalog.string_agg(shown, ', ' ORDER BY shown) INTO dependents FROM (
    SELECT DISTINCT coalesce(
      (SELECT pg_catalog.pg_describe_object('pg_catalog.pg_class'::pg_catalog.regclass, r.ev_class, 0)
        FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class v ON v.oid = r.ev_class AND v.relkind IN ('v', 'm')
        WHERE a.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND r.oid = a.objid),
      pg_catalog.pg_describe_object(a.classid, a.objid, a.objsubid)) AS shown
    FROM aliens a LIMIT 50) s;
  IF dependents IS NOT NULL THEN
    RAISE EXCEPTION USING ERRCODE = 'dependent_objects_still_exist',
      MESSAGE = 'nothing was dropped: other objects depend on what this dump brings back: ' || dependents,
      HINT = 'drop or move these objects first, or restore into a new database';
  END IF;
END
$pgark$;
