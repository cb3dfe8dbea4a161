-- Errors by stage: which spans fail, how often, and on how many days; the worst first.
SELECT
  experiment_id,
  span_type,
  span_name,
  sum(span_count) AS span_count,
  sum(error_count) AS error_count,
  sum(error_count) / sum(span_count) AS error_rate,
  count(DISTINCT CASE WHEN error_count > 0 THEN date END) AS days_with_errors,
  max(CASE WHEN error_count > 0 THEN hour END) AS latest_error_hour
FROM span_profile
WHERE span_name IS NOT NULL
GROUP BY experiment_id, span_type, span_name
HAVING sum(span_profile.error_count) > 0
ORDER BY error_count DESC, experiment_id NULLS FIRST, span_type NULLS FIRST, span_name
