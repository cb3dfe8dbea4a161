-- Tokens by day and trace name: those of prompts and of answers.
SELECT
  date,
  experiment_id,
  trace_name,
  sum(trace_count) AS trace_count,
  sum(input_tokens) AS input_tokens,
  sum(output_tokens) AS output_tokens,
  sum(total_tokens) AS total_tokens,
  sum(total_tokens) / sum(trace_count) AS tokens_per_trace
FROM hourly_performance
WHERE trace_name IS NOT NULL
GROUP BY date, experiment_id, trace_name
ORDER BY date, experiment_id NULLS FIRST, trace_name
