-- Freshness: how far each experiment's traces, figures and scores reach, and whether they are more than three hours old.
WITH latest AS (
  SELECT 'archive' AS what, experiment_id, max(trace_hour) AS latest_hour, max(created_at) AS last_written
  FROM agent_traces
  GROUP BY experiment_id
  UNION ALL
  SELECT 'performance', experiment_id, max(hour), CAST(NULL AS TIMESTAMP)
  FROM hourly_performance
  GROUP BY experiment_id
  UNION ALL
  SELECT scorer, experiment_id, max(trace_hour), max(assessed_at)
  FROM assessments
  GROUP BY scorer, experiment_id
)
SELECT
  what,
  experiment_id,
  latest_hour,
  last_written,
  latest_hour < current_timestamp - INTERVAL '3' HOUR AS is_old
FROM latest
ORDER BY experiment_id NULLS FIRST, what
