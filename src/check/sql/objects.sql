-- Large objects: how many, how many the role cannot read, and some of those. Before PostgreSQL 18
-- there is no function to ask; a null ACL is the owner's default.
SELECT pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE NOT readable),
  pg_catalog.string_agg(oid::text, ', ' ORDER BY oid) FILTER (WHERE nth <= 5)
FROM (
  SELECT oid, readable, CASE WHEN NOT readable THEN pg_catalog.row_number() OVER (PARTITION BY readable ORDER BY oid) END AS nth
  FROM (
    SELECT m.oid, r.rolsuper OR pg_catalog.current_setting('lo_compat_privileges')::boolean
      OR EXISTS (SELECT FROM pg_catalog.aclexplode(coalesce(m.lomacl, pg_catalog.acldefault('L', m.lomowner))) a
        WHERE a.privilege_type = 'SELECT' AND CASE WHEN a.grantee = 0 THEN true ELSE pg_catalog.pg_has_role(a.grantee, 'USAGE') END) AS readable
    FROM pg_catalog.pg_largeobject_metadata m, pg_catalog.pg_roles r WHERE r.rolname = current_user
  ) AS judged
) AS numbered
