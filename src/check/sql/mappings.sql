-- User mappings whose options (passwords, mostly) pg_dump would leave out without a word: the
-- view pg_user_mappings hides them from this role.
SELECT pg_catalog.count(*), pg_catalog.string_agg(pg_catalog.format('%I for %I', u.srvname, u.usename), ', ' ORDER BY u.umid)
FROM pg_catalog.pg_user_mappings u JOIN pg_catalog.pg_foreign_server s ON s.oid = u.srvid
WHERE NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
  AND NOT (u.umuser <> 0 AND u.usename = current_user
    AND (pg_catalog.pg_has_role(s.srvowner, 'USAGE') OR pg_catalog.has_server_privilege(s.oid, 'USAGE')))
  AND NOT (u.umuser = 0 AND pg_catalog.pg_has_role(s.srvowner, 'USAGE'))
