-- Sessions by day of their first trace: how many, how long, and how many had a failed trace.
WITH sessions AS (
  SELECT
    experiment_id,
    session_id,
    min(date) AS date,
    count(*) AS traces,
    sum(CASE WHEN trace_info.status = 'ERROR' THEN 1 ELSE 0 END) AS failed_traces,
    sum(duration_ms) AS duration_ms,
    sum(total_tokens) AS total_tokens,
    sum(cost_usd) AS cost_usd
  FROM agent_traces
  WHERE session_id IS NOT NULL
  GROUP BY experiment_id, session_id
)
SELECT
  date,
  experiment_id,
  count(*) AS sessions,
  avg(traces) AS traces_per_session,
  max(traces) AS longest_session_traces,
  sum(CASE WHEN failed_traces > 0 THEN 1 ELSE 0 END) / count(*) AS share_with_failure,
  avg(duration_ms) AS avg_duration_ms,
  avg(total_tokens) AS tokens_per_session,
  avg(cost_usd) AS cost_usd_per_session
FROM sessions
GROUP BY date, experiment_id
ORDER BY date, experiment_id NULLS FIRST
