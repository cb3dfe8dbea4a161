-- Traffic by hour: traces, error rate and exact latency percentiles of each experiment.
SELECT
  hour,
  experiment_id,
  trace_count,
  error_count,
  error_rate,
  p50_duration_ms,
  p95_duration_ms,
  p99_duration_ms
FROM hourly_performance
WHERE trace_name IS NULL -- all names of the experiment together
ORDER BY hour, experiment_id NULLS FIRST
