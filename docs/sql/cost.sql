-- Cost by day and experiment: of the agent's own model calls, and of the judges that scored them, in US dollars.
-- Both stand at the day of the trace; a judge may have run later.
WITH spent AS (
  SELECT date, experiment_id, trace_count, cost_usd AS agent_cost_usd, CAST(NULL AS DOUBLE) AS judge_cost_usd
  FROM hourly_performance
  WHERE trace_name IS NULL
  UNION ALL
  SELECT date, experiment_id, 0, CAST(NULL AS DOUBLE), cost_usd
  FROM assessments
)
SELECT
  date,
  experiment_id,
  sum(trace_count) AS trace_count,
  sum(agent_cost_usd) AS agent_cost_usd,
  sum(judge_cost_usd) AS judge_cost_usd,
  sum(agent_cost_usd) / nullif(sum(trace_count), 0) AS agent_cost_usd_per_trace
FROM spent
GROUP BY date, experiment_id
ORDER BY date, experiment_id NULLS FIRST
