-- Do they belong to something else, such as the index or the sequence of a table that was renamed
-- since? Does anything else depend on them? Their parts (indexes, row types, owned sequences, members
-- of an extension) go along; a view, a table, a foreign key or a partition made later does not.
DO $pgark$
DECLARE
  owners text;
  dependents text;
BEGIN
  CREATE TEMPORARY TABLE pgark_gone AS WITH RECURSIVE gone(class, object) AS (
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
  ) SELECT class, object FROM gone;
  ANALYZE pg_temp.pgark_gone;
  SELECT pg_catalog.string_agg(shown, ', ' ORDER BY shown) INTO owners FROM (
    SELECT DISTINCT pg_catalog.pg_describe_object(d.classid, d.objid, 0) || ' of '
      || pg_catalog.pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid) AS shown
    FROM pg_temp.pgark_objects o
    JOIN pg_catalog.pg_depend d ON d.classid = o.class AND d.objid = o.object AND d.deptype IN ('a', 'i', 'e', 'P', 'S')
    WHERE NOT EXISTS (SELECT FROM pg_temp.pgark_gone g WHERE g.class = d.refclassid AND g.object = d.refobjid)
    LIMIT 50) s;
  IF owners IS NOT NULL THEN
    RAISE EXCEPTION USING ERRCODE = 'dependent_objects_still_exist',
      MESSAGE = 'nothing was dropped: what has the name of an object of this dump belongs to another: ' || owners,
      HINT = 'rename or drop these first, or restore into a new database';
  END IF;
  WITH aliens AS (
    SELECT d.classid, d.objid, d.objsubid
    FROM pg_temp.pgark_gone g
    JOIN pg_catalog.pg_depend d ON d.refclassid = g.class AND d.refobjid = g.object
    WHERE NOT EXISTS (SELECT FROM pg_temp.pgark_gone o WHERE o.class = d.classid AND o.object = d.objid)
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
  DROP TABLE pg_temp.pgark_gone;
END
$pgark$;
