-- Agreement with people: how often a scorer and people's feedback give the same verdict, and Cohen's kappa, over all days.
WITH counts AS (
  SELECT
    experiment_id,
    scorer,
    scorer_digest,
    reference_name,
    sum(pass_pass) AS pass_pass,
    sum(pass_fail) AS pass_fail,
    sum(fail_pass) AS fail_pass,
    sum(fail_fail) AS fail_fail,
    sum(pass_pass + pass_fail + fail_pass + fail_fail) AS traces
  FROM scorer_agreement
  WHERE reference = 'human'
  GROUP BY experiment_id, scorer, scorer_digest, reference_name
),
shares AS (
  SELECT
    counts.*,
    (pass_pass + fail_fail) / traces AS agreement,
    (pass_pass + pass_fail) / traces * ((pass_pass + fail_pass) / traces)
      + (fail_pass + fail_fail) / traces * ((pass_fail + fail_fail) / traces) AS by_chance
  FROM counts
  WHERE traces > 0
)
SELECT
  experiment_id,
  scorer,
  scorer_digest,
  reference_name,
  traces,
  pass_pass,
  pass_fail,
  fail_pass,
  fail_fail,
  agreement,
  -- null where one of the two gave a single verdict only: the counts say nothing then
  CASE
    WHEN (pass_pass + pass_fail) * (fail_pass + fail_fail) * (pass_pass + fail_pass) * (pass_fail + fail_fail) > 0
    THEN (agreement - by_chance) / (1 - by_chance)
  END AS kappa
FROM shares
ORDER BY experiment_id NULLS FIRST, scorer, scorer_digest, reference_name
