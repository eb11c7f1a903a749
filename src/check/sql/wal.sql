SELECT pg_catalog.current_setting('wal_level'),
  pg_catalog.current_setting('max_wal_senders')::int,
  (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication),
  pg_catalog.current_setting('max_replication_slots')::int,
  (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots),
  r.rolsuper OR r.rolreplication,
  coalesce(pg_catalog.current_setting('summarize_wal', true), ''),
  (SELECT s.setting::bigint FROM pg_catalog.pg_settings s WHERE s.name = 'max_slot_wal_keep_size'),
  pg_catalog.current_setting('wal_segment_size')
FROM pg_catalog.pg_roles r WHERE r.rolname = current_user
