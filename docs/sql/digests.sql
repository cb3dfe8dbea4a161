-- Before and after a change of a scorer: hours, scores and pass rate of each of its digests, oldest hours first.
-- The traces differ from digest to digest; digest_change.sql compares on the same ones.
SELECT
  experiment_id,
  scorer,
  scorer_digest,
  min(hour) AS first_hour,
  max(hour) AS last_hour,
  sum(scored) AS scored,
  sum(failed) AS failed,
  -- hours count by their traces; those computed before the table had `population`, by their scores
  sum(mean_score * coalesce(population, scored))
    / nullif(sum(CASE WHEN mean_score IS NOT NULL THEN coalesce(population, scored) END), 0) AS mean_score,
  sum(pass_rate * coalesce(population, scored))
    / nullif(sum(CASE WHEN pass_rate IS NOT NULL THEN coalesce(population, scored) END), 0) AS pass_rate
FROM hourly_quality
GROUP BY experiment_id, scorer, scorer_digest
ORDER BY experiment_id NULLS FIRST, scorer, first_hour, scorer_digest
