DO $pgark$
DECLARE
  o record;
  i record;
BEGIN
  FOR o IN SELECT class, object FROM pg_temp.pgark_objects WHERE place > /*first*/ AND place <= /*last*/ ORDER BY place LOOP
    SELECT type, identity INTO i FROM pg_catalog.pg_identify_object(o.class, o.object, 0);
    CONTINUE WHEN i.identity IS NULL; -- went along with another
    CASE i.type
      WHEN 'subscription' THEN
        EXECUTE 'ALTER SUBSCRIPTION ' || i.identity || ' DISABLE';
        EXECUTE 'ALTER SUBSCRIPTION ' || i.identity || ' SET (slot_name = NONE)';
        EXECUTE 'DROP SUBSCRIPTION ' || i.identity;
      WHEN 'schema' THEN
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_depend
            WHERE refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND refobjid = o.object
              -- rights come back with the schema; a later publication of the whole schema does not
              AND (deptype <> 'a' OR classid = pg_catalog.to_regclass('pg_catalog.pg_publication_namespace'))) THEN
          EXECUTE 'DROP SCHEMA ' || i.identity || ' CASCADE';
        END IF;
      WHEN 'user mapping' THEN
        NULL; -- goes with its server
      WHEN 'transform' THEN
        EXECUTE 'DROP TRANSFORM ' || pg_catalog.replace(i.identity, ' on language ', ' LANGUAGE ') || ' CASCADE';
      ELSE
        EXECUTE 'DROP ' || CASE i.type
            WHEN 'foreign-data wrapper' THEN 'FOREIGN DATA WRAPPER'
            WHEN 'statistics object' THEN 'STATISTICS'
            WHEN 'composite type' THEN 'TYPE'
            WHEN 'function' THEN 'ROUTINE' WHEN 'procedure' THEN 'ROUTINE' WHEN 'aggregate' THEN 'ROUTINE'
            ELSE pg_catalog.upper(i.type) END
          || ' ' || i.identity || ' CASCADE';
    END CASE;
  END LOOP;
END
$pgark$;
