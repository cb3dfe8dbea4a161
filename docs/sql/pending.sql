-- What still waits: hours with traces that a scorer has to see and has not, or that its budget held back.
SELECT hour, experiment_id, scorer, scorer_digest, eligible, scored, pending, over_budget
FROM scorer_coverage
WHERE pending > 0 OR over_budget > 0
ORDER BY hour, experiment_id NULLS FIRST, scorer, scorer_digest
