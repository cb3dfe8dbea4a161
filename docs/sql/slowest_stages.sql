-- Slowest stages by day: where the time goes, by self time, which leaves out what child spans took.
SELECT
  date,
  experiment_id,
  span_type,
  span_name,
  sum(span_count) AS span_count,
  sum(self_time_ms) AS self_time_ms,
  sum(self_time_ms) / nullif(sum(sum(self_time_ms)) OVER (PARTITION BY date, experiment_id), 0) AS share_of_time,
  sum(total_ms) / sum(span_count) AS avg_ms,
  max(max_ms) AS max_ms
FROM span_profile
WHERE span_name IS NOT NULL
GROUP BY date, experiment_id, span_type, span_name
ORDER BY date, experiment_id NULLS FIRST, self_time_ms DESC, span_type NULLS FIRST, span_name
