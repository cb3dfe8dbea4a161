-- Failing scorers by day: errors in place of scores, by kind, with their share and one message.
WITH outcomes AS (
  SELECT
    date,
    scorer,
    scorer_digest,
    error_code,
    count(*) AS results,
    min(error_message) AS example,
    sum(count(*)) OVER (PARTITION BY date, scorer, scorer_digest) AS all_results
  FROM assessments
  GROUP BY date, scorer, scorer_digest, error_code
)
SELECT date, scorer, scorer_digest, error_code, results AS failed, results / all_results AS failure_rate, example
FROM outcomes
WHERE error_code IS NOT NULL
ORDER BY date, failed DESC, scorer, scorer_digest, error_code
