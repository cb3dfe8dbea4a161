-- A scorer's latest digest against the one before it, on the traces that both scored: who went up, who went down.
WITH digests AS (
  SELECT
    scorer,
    scorer_digest,
    row_number() OVER (PARTITION BY scorer ORDER BY min(assessed_at) DESC, scorer_digest) AS age
  FROM assessments
  GROUP BY scorer, scorer_digest
),
latest AS (
  SELECT assessments.*
  FROM assessments
  JOIN digests ON digests.scorer = assessments.scorer AND digests.scorer_digest = assessments.scorer_digest
  WHERE digests.age = 1 AND assessments.score IS NOT NULL
),
earlier AS (
  SELECT assessments.*
  FROM assessments
  JOIN digests ON digests.scorer = assessments.scorer AND digests.scorer_digest = assessments.scorer_digest
  WHERE digests.age = 2 AND assessments.score IS NOT NULL
)
SELECT
  latest.scorer,
  earlier.scorer_digest AS digest_before,
  latest.scorer_digest AS digest_after,
  count(*) AS traces,
  avg(earlier.score) AS mean_score_before,
  avg(latest.score) AS mean_score_after,
  sum(CASE WHEN latest.score > earlier.score THEN 1 ELSE 0 END) AS went_up,
  sum(CASE WHEN latest.score < earlier.score THEN 1 ELSE 0 END) AS went_down
FROM latest
JOIN earlier
  ON earlier.scorer = latest.scorer AND earlier.trace_id = latest.trace_id AND earlier.date = latest.date
GROUP BY latest.scorer, earlier.scorer_digest, latest.scorer_digest
ORDER BY latest.scorer
