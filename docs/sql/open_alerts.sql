-- Open alerts: what is wrong now, since when, and how far from what it is held against; critical ones first.
SELECT opened_at, severity, rule, scope, metric, kind, measured, held_against, detail, last_held_at, last_notified_at
FROM alerts
WHERE state = 'open'
ORDER BY
  CASE severity WHEN 'critical' THEN 0 WHEN 'warning' THEN 1 ELSE 2 END,
  opened_at,
  rule,
  scope
