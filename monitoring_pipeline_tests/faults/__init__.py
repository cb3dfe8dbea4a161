"""Random schedules of the pipeline under faults, held against a model of the truth that knows none of its code.

`truth` says what the lake must hold, `schedule` draws the steps of a seed, `world` carries them out, `faults` strikes
while it does, `invariants` compares. `python -m monitoring_pipeline_tests.faults --seed N` replays a schedule.
"""
