-- Quality by day: the mean score of each scorer and digest with its 95 % interval, for all traces that pass its filter.
-- The figures are those of the hours that have scores (covered_hours of hours). Hours count by their traces, not by
-- their scores, so that a change of the sample rate shifts nothing. A complete sample has no uncertainty. The hours of a
-- sample rate have Wilson's interval where all scores are 0 or 1, else the mean plus or minus 1.96 standard errors;
-- Zou's sum combines rates. The report is exact for single hours and allows for failed results: see docs/numbers.md.
WITH strata AS (
  SELECT
    date,
    trace_hour AS hour,
    experiment_id,
    scorer,
    scorer_digest,
    count(score) AS n,
    avg(score) AS mean,
    coalesce(var_samp(score), 0) * (count(score) - 1) AS squares,
    max(sample_rate) AS rate,
    min(CASE WHEN score IN (0, 1) THEN 1 ELSE 0 END) AS is_pass_fail
  FROM assessments
  WHERE score IS NOT NULL
  GROUP BY date, trace_hour, experiment_id, scorer, scorer_digest
),
ledger AS (
  SELECT date, hour, experiment_id, scorer, scorer_digest, sum(eligible + unsampled) AS population
  FROM scorer_coverage
  GROUP BY date, hour, experiment_id, scorer, scorer_digest
  HAVING sum(eligible + unsampled) > 0
),
sized AS (
  SELECT
    ledger.date,
    ledger.experiment_id,
    ledger.scorer,
    ledger.scorer_digest,
    greatest(ledger.population, coalesce(strata.n, 0)) * 1E0 AS population,
    strata.n,
    strata.mean,
    strata.squares,
    strata.rate,
    strata.is_pass_fail,
    CASE WHEN strata.n >= ledger.population THEN 1 ELSE 0 END AS is_complete
  FROM ledger
  LEFT JOIN strata
    ON strata.hour = ledger.hour
    AND strata.experiment_id IS NOT DISTINCT FROM ledger.experiment_id
    AND strata.scorer = ledger.scorer
    AND strata.scorer_digest = ledger.scorer_digest
),
rates AS (
  SELECT
    date,
    experiment_id,
    scorer,
    scorer_digest,
    is_complete,
    count(*) AS hours,
    count(n) AS covered_hours,
    sum(n) AS n,
    sum(CASE WHEN n IS NOT NULL THEN population END) AS size,
    sum(mean * population) / sum(CASE WHEN n IS NOT NULL THEN population END) AS mean,
    min(is_pass_fail) AS is_pass_fail,
    sum(squares) / nullif(sum(n - 1), 0) AS variance,
    -- the variance of the mean for scores of variance 1
    sum(population * population / n * (1 - n / population)) / (sum(population) * sum(population)) AS spread
  FROM sized
  GROUP BY date, experiment_id, scorer, scorer_digest, rate, is_complete
),
of_days AS (
  SELECT
    rates.*,
    min(is_pass_fail) OVER (PARTITION BY date, experiment_id, scorer, scorer_digest) AS day_is_pass_fail,
    size / sum(size) OVER (PARTITION BY date, experiment_id, scorer, scorer_digest) AS weight
  FROM rates
),
bounded AS (
  SELECT
    of_days.*,
    CASE
      WHEN is_complete = 0 AND day_is_pass_fail = 1
        THEN (mean + 1.920729410347062E0 * spread) / (1 + 3.841458820694124E0 * spread)
      ELSE mean
    END AS centre,
    CASE
      WHEN is_complete = 1 THEN 0
      WHEN day_is_pass_fail = 1
        THEN 1.959963984540054E0 / (1 + 3.841458820694124E0 * spread)
          * sqrt(mean * (1 - mean) * spread + 0.960364705173531E0 * spread * spread)
      ELSE 1.959963984540054E0 * sqrt(variance * spread)
    END AS margin
  FROM of_days
)
SELECT
  date,
  experiment_id,
  scorer,
  scorer_digest,
  cast(sum(n) AS bigint) AS scored,
  cast(sum(size) AS bigint) AS population,
  cast(sum(covered_hours) AS bigint) AS covered_hours,
  cast(sum(hours) AS bigint) AS hours,
  sum(weight * mean) AS mean_score,
  sum(weight * mean) - sqrt(sum(power(weight * (mean - centre + margin), 2))) AS ci_low,
  sum(weight * mean) + sqrt(sum(power(weight * (centre + margin - mean), 2))) AS ci_high
FROM bounded
GROUP BY date, experiment_id, scorer, scorer_digest
HAVING sum(n) > 0
ORDER BY date, experiment_id NULLS FIRST, scorer, scorer_digest
