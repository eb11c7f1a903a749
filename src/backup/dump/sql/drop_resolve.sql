-- Which of them are here? A relation is looked up by name, whatever its kind: its name must
-- become free.
DO $pgark$
DECLARE
  o record;
BEGIN
  FOR o IN SELECT n, type, names, args FROM pg_temp.pgark_objects LOOP
    BEGIN
      IF o.type IN ('table', 'view', 'materialized view', 'foreign table', 'sequence', 'index', 'property graph') THEN
        UPDATE pg_temp.pgark_objects SET class = 'pg_catalog.pg_class'::pg_catalog.regclass,
          object = pg_catalog.to_regclass(pg_catalog.format('%I.%I', o.names[1], o.names[2])) WHERE n = o.n;
      ELSIF o.type = 'operator' THEN
        -- pg_get_object_address knows no prefix operators
        UPDATE pg_temp.pgark_objects SET class = 'pg_catalog.pg_operator'::pg_catalog.regclass,
          object = pg_catalog.to_regoperator(pg_catalog.format('%I.%s(%s,%s)', o.names[1], o.names[2],
            CASE WHEN pg_catalog.array_length(o.args, 1) = 1 THEN 'NONE' ELSE o.args[1] END,
            o.args[pg_catalog.array_length(o.args, 1)])) WHERE n = o.n;
      ELSE
        UPDATE pg_temp.pgark_objects SET (class, object) = (SELECT a.classid, a.objid
          FROM pg_catalog.pg_get_object_address(o.type, o.names, o.args) a) WHERE n = o.n;
      END IF;
    EXCEPTION WHEN OTHERS THEN
      NULL; -- not here
    END;
  END LOOP;
  DELETE FROM pg_temp.pgark_objects WHERE object IS NULL;
  -- Event triggers first (they would fire), tables before their sequences and indexes,
  -- extensions and schemas last. The later one of two tables first: partitions before their
  -- parent, whose CASCADE would take the locks of all at once.
  UPDATE pg_temp.pgark_objects p SET place = r.place FROM (
    SELECT q.n, pg_catalog.row_number() OVER (ORDER BY CASE q.type
        WHEN 'event trigger' THEN 0 WHEN 'subscription' THEN 1 WHEN 'publication' THEN 2
        WHEN 'extension' THEN 7 WHEN 'schema' THEN 8
        ELSE CASE WHEN c.relkind IN ('r', 'p', 'f') THEN 3 WHEN c.relkind IN ('v', 'm', 'S', 'g') THEN 4
                  WHEN c.relkind IS NULL THEN 5 ELSE 6 END
      END, CASE WHEN c.relkind IN ('r', 'p', 'f') THEN -q.n ELSE q.n END) AS place
    FROM pg_temp.pgark_objects q LEFT JOIN pg_catalog.pg_class c
      ON q.class = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.oid = q.object) r
  WHERE p.n = r.n;
END
$pgark$;
