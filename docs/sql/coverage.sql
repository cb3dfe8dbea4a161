-- The ledger by day: what became of every archived trace, for each scorer and digest, and whether it adds up.
WITH days AS (
  SELECT
    date,
    experiment_id,
    scorer,
    scorer_digest,
    sum(archived) AS archived,
    sum(filtered_out) AS filtered_out,
    sum(unsampled) AS unsampled,
    sum(eligible) AS eligible,
    sum(scored) AS scored,
    sum(failed) AS failed,
    sum(over_budget) AS over_budget,
    sum(pending) AS pending
  FROM scorer_coverage
  GROUP BY date, experiment_id, scorer, scorer_digest
)
SELECT
  days.*,
  scored / nullif(eligible, 0) AS coverage,
  archived = eligible + filtered_out + unsampled
    AND eligible = scored + failed + over_budget + pending AS adds_up
FROM days
ORDER BY date, experiment_id NULLS FIRST, scorer, scorer_digest
