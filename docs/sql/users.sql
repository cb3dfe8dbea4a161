-- Users: the 100 with the most traces, with their error rate, tokens and cost.
SELECT
  experiment_id,
  user_id,
  count(*) AS trace_count,
  count(DISTINCT session_id) AS sessions,
  sum(CASE WHEN trace_info.status = 'ERROR' THEN 1 ELSE 0 END) / count(*) AS error_rate,
  percentile_cont(0.95) WITHIN GROUP (ORDER BY CASE WHEN trace_info.status <> 'IN_PROGRESS' THEN duration_ms END) AS p95_duration_ms,
  sum(total_tokens) AS total_tokens,
  sum(cost_usd) AS cost_usd,
  max(trace_info.timestamp) AS latest_trace
FROM agent_traces
WHERE user_id IS NOT NULL
GROUP BY experiment_id, user_id
ORDER BY trace_count DESC, experiment_id NULLS FIRST, user_id
LIMIT 100
