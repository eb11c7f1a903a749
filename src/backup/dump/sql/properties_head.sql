
-- The database's own properties, for whichever database this is restored into.
DO $pgark_properties$
DECLARE
  me text := pg_catalog.quote_ident(pg_catalog.current_database());
  old record;
BEGIN
  IF NOT pg_catalog.pg_has_role((SELECT datdba FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()), 'USAGE') THEN
    RAISE WARNING 'owner, rights and settings of this database were not restored: % does not own it', current_user;
    RETURN;
  END IF;
  FOR old IN SELECT DISTINCT a.grantee FROM pg_catalog.pg_database d, pg_catalog.aclexplode(coalesce(d.datacl,
      pg_catalog.acldefault('d', d.datdba))) a WHERE d.datname = pg_catalog.current_database() LOOP
    EXECUTE 'REVOKE ALL ON DATABASE ' || me || ' FROM ' || CASE WHEN old.grantee = 0 THEN 'PUBLIC'
      ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(old.grantee)) END || ' CASCADE';
  END LOOP;
