"""Plays schedules until the time is over, or replays one step by step with --seed."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    """Play schedules, print what happened and how to replay violations, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m monitoring_pipeline_tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="start no schedule after these minutes")
    parser.add_argument("--seeds", type=int, help="play at most so many schedules")
    parser.add_argument("--first", type=int, default=1, help="the seed of the first schedule")
    parser.add_argument("--seed", type=int, help="replay the schedule of this seed")
    parser.add_argument("--length", type=int, default=24, help="draw so many steps")
    parser.add_argument("--no-commands", action="store_true", help="run no real command")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(f"ended by signal {number}"))  # unmounts the disk
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MONITORING_CONFIG": ""}
    from monitoring_pipeline_tests.faults.playing import Played, stage
    from monitoring_pipeline_tests.faults.schedule import Schedule

    played, ends = Played(), time.monotonic() + 60 * options.minutes
    first, most = (options.seed, 1) if options.seed else (options.first, options.seeds or sys.maxsize)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, stage(Path(folder)) as place:
        print("disk full:", "ENOSPC on a tmpfs" if place.on_disk else "EFBIG by RLIMIT_FSIZE, as mount is not allowed")
        for seed in range(first, min(first + most, sys.maxsize)):
            if time.monotonic() > ends:
                break
            schedule = Schedule(seed, options.length, commands=not options.no_commands)
            if violations := place.play(schedule, played, print if options.seed else lambda line: None):
                print(f"seed {seed}; replay: {schedule.replay}", *violations, sep="\n  ", flush=True)
    print(played)
    return 1 if played.violations else 0


if __name__ == "__main__":
    sys.exit(main())
