-- Latency by day and trace name: exact percentiles over the day's traces.
-- Percentiles of hours cannot be averaged into those of a day, so this reads the traces' own durations.
SELECT
  date,
  experiment_id,
  trace_name,
  count(*) AS trace_count,
  avg(duration_ms) AS avg_duration_ms,
  percentile_cont(0.5) WITHIN GROUP (ORDER BY duration_ms) AS p50_duration_ms,
  percentile_cont(0.95) WITHIN GROUP (ORDER BY duration_ms) AS p95_duration_ms,
  percentile_cont(0.99) WITHIN GROUP (ORDER BY duration_ms) AS p99_duration_ms,
  max(duration_ms) AS max_duration_ms
FROM trace_performance
GROUP BY date, experiment_id, trace_name
ORDER BY date, experiment_id NULLS FIRST, trace_name NULLS FIRST
