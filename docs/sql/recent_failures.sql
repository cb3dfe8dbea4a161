-- Recent failures: the latest 100 traces that failed or have a failed span, with what was asked.
SELECT
  errors.timestamp,
  errors.trace_id,
  errors.experiment_id,
  errors.trace_name,
  errors.status,
  performance.error_span_count,
  performance.duration_ms,
  errors.request
FROM trace_errors AS errors
LEFT JOIN trace_performance AS performance
  ON performance.trace_id = errors.trace_id AND performance.date = errors.date
ORDER BY errors.timestamp DESC, errors.trace_id
LIMIT 100
