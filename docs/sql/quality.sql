-- Quality by day: the mean score of each scorer and digest with its 95 % interval, for all traces that pass its filter.
-- Days are pooled from the scores themselves, as intervals of hours cannot be averaged. A complete sample has no
-- uncertainty. Where all scores are 0 or 1: Wilson's interval with n (N - 1) / (N - n) for n. Else the mean plus or
-- minus 1.96 standard errors, corrected for the sampled share: good for some 30 scores and more.
WITH scores AS (
  SELECT
    date,
    experiment_id,
    scorer,
    scorer_digest,
    count(score) AS n,
    avg(score) AS mean_score,
    stddev_samp(score) AS deviation,
    min(CASE WHEN score IN (0, 1) THEN 1 ELSE 0 END) AS is_pass_fail
  FROM assessments
  WHERE score IS NOT NULL
  GROUP BY date, experiment_id, scorer, scorer_digest
),
populations AS (
  SELECT date, experiment_id, scorer, scorer_digest, sum(eligible + unsampled) AS population
  FROM scorer_coverage
  GROUP BY date, experiment_id, scorer, scorer_digest
),
known AS (
  SELECT
    scores.*,
    populations.population,
    1.959963984540054E0 AS z,
    -- null for a complete sample, which needs none
    n * (population - 1) / nullif(greatest(population - n, 0), 0) AS effective,
    deviation / sqrt(n) * sqrt(greatest(1 - n / population, 0)) AS standard_error
  FROM scores
  JOIN populations
    ON populations.date = scores.date
    AND populations.experiment_id IS NOT DISTINCT FROM scores.experiment_id
    AND populations.scorer = scores.scorer
    AND populations.scorer_digest = scores.scorer_digest
),
shaped AS (
  SELECT
    known.*,
    (mean_score + z * z / (2 * effective)) / (1 + z * z / effective) AS centre,
    z / (1 + z * z / effective)
      * sqrt(mean_score * (1 - mean_score) / effective + z * z / (4 * effective * effective)) AS margin
  FROM known
)
SELECT
  date,
  experiment_id,
  scorer,
  scorer_digest,
  n AS scored,
  population,
  mean_score,
  CASE
    WHEN n >= population THEN mean_score
    WHEN is_pass_fail = 1 THEN greatest(centre - margin, 0)
    ELSE mean_score - z * standard_error
  END AS ci_low,
  CASE
    WHEN n >= population THEN mean_score
    WHEN is_pass_fail = 1 THEN least(centre + margin, 1)
    ELSE mean_score + z * standard_error
  END AS ci_high
FROM shaped
ORDER BY date, experiment_id NULLS FIRST, scorer, scorer_digest
