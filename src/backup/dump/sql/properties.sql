SELECT pg_catalog.json_build_object(
  'encoding', pg_catalog.pg_encoding_to_char(d.encoding),
  'owner', pg_catalog.pg_get_userbyid(d.datdba),
  'tablespace', (SELECT t.spcname FROM pg_catalog.pg_tablespace t WHERE t.oid = d.dattablespace),
  'collate', d.datcollate,
  'ctype', d.datctype,
  'locale_provider', coalesce(pg_catalog.to_jsonb(d)->>'datlocprovider', 'c'),
  'locale', coalesce(pg_catalog.to_jsonb(d)->>'datlocale', pg_catalog.to_jsonb(d)->>'daticulocale'),
  'icu_rules', pg_catalog.to_jsonb(d)->>'daticurules',
  'connection_limit', d.datconnlimit,
  'is_template', d.datistemplate,
  'comment', pg_catalog.shobj_description(d.oid, 'pg_database'),
  'rights', d.datacl::text[],
  'settings', (SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
      'role', CASE WHEN s.setrole = 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(s.setrole) END,
      'settings', s.setconfig) ORDER BY s.setrole)
    FROM pg_catalog.pg_db_role_setting s WHERE s.setdatabase = d.oid)
) FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
