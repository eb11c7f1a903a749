SELECT r.rolsuper, r.rolconnlimit,
  (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity a WHERE a.usename = current_user),
  CASE WHEN pg_catalog.isfinite(r.rolvaliduntil) THEN extract(epoch FROM r.rolvaliduntil - pg_catalog.now())::bigint END,
  coalesce(r.rolvaliduntil::text, ''),
  pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT'),
  pg_catalog.pg_is_in_recovery(),
  pg_catalog.current_setting('max_connections')::int,
  pg_catalog.current_setting('superuser_reserved_connections')::int
    + coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::int,
  (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity a WHERE a.datid IS NOT NULL),
  pg_catalog.current_setting('hot_standby_feedback')::boolean,
  pg_catalog.current_setting('max_standby_streaming_delay'),
  pg_catalog.current_setting('max_locks_per_transaction')::bigint
    * (pg_catalog.current_setting('max_connections')::bigint + pg_catalog.current_setting('max_prepared_transactions')::bigint),
  pg_catalog.current_setting('max_locks_per_transaction')::bigint
FROM pg_catalog.pg_roles r WHERE r.rolname = current_user
