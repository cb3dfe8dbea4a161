"""A Spark cluster for tests on loopback: a master, workers with two cores, and a Connect server with Delta Lake.

It has one worker, and Spark interprets its plans. With MONITORING_LONG_TESTS=1 it has two workers, so that one can be
lost, and Spark compiles its plans, as it does by default: for few rows that takes half of the time of the workers.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyspark
import pytest

from monitoring_pipeline.resources.network import why_unreachable
from monitoring_pipeline_tests import services
from monitoring_pipeline_tests.servers import free_port

JARS = Path.home() / ".cache" / "monitoring-pipeline" / "spark-jars"
ROOT = Path(__file__).parents[1]
LEAST_JAVA = 17
START_SECONDS = 240
LONG = "MONITORING_LONG_TESTS" in os.environ
CORES = 2
WORKERS = 2 if LONG else 1
# Short-lived processes on few cores: neither the second compiler nor a parallel collector pays off. The cache for
# compiled code has to be large, because so many different queries run.
JVM = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=512m -XX:+UseSerialGC"
# For few rows, what prepares a query takes longer than the query.
INTERPRETED = {
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.adaptive.enabled": "false",
}
LOGGING = """
rootLogger.level = warn
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d %p %c{1}: %m%n%ex
"""


class SparkCluster:
    """The processes of a cluster, with their files in `folder`; `remote` is its Spark Connect address.

    The tables of the catalog outlive the Connect server.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.connect_port, self.master_port = free_port(), free_port()
        self.remote = f"sc://127.0.0.1:{self.connect_port}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all processes, and wait until the Connect server answers."""
        (self.folder / "log4j2.properties").write_text(LOGGING, encoding="utf-8")
        self._start(
            "master", "org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", str(self.master_port)
        )
        self._wait_for("master", self.master_port)
        for number in range(WORKERS):
            self.start_worker(number)
        self.start_connect()

    def start_worker(self, number: int) -> None:
        """Start a worker with its share of the cores."""
        self._start(
            f"worker-{number}",
            "org.apache.spark.deploy.worker.Worker",
            self._master_address,
            *("--host", "127.0.0.1", "--cores", str(CORES // WORKERS), "--memory", "2g"),
            *("--work-dir", str(self.folder / f"worker-{number}")),
        )

    def start_connect(self) -> None:
        """Start the Connect server, and wait until it answers."""
        settings = {
            "spark.jars": ",".join(map(str, JARS.glob("*.jar"))),
            "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
            "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
            "spark.sql.catalogImplementation": "hive",
            "spark.sql.warehouse.dir": str(self.folder / "warehouse"),
            "spark.hadoop.javax.jdo.option.ConnectionURL": f"jdbc:derby:{self.folder / 'metastore'};create=true",
            "spark.connect.grpc.binding.address": "127.0.0.1",
            "spark.connect.grpc.binding.port": str(self.connect_port),
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.memory": "4g",
            "spark.executor.memory": "1g",
            "spark.executor.cores": str(CORES // WORKERS),
            "spark.driver.extraJavaOptions": JVM,
            "spark.executor.extraJavaOptions": JVM,
            "spark.locality.wait": "0s",  # by default a task waits three seconds for the worker that stores its data
            "spark.scheduler.revive.interval": "100ms",
            "spark.sql.shuffle.partitions": "2",
            "spark.databricks.delta.snapshotPartitions": "1",
            "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
            "spark.ui.enabled": "false",
            "spark.sql.ui.explainMode": "simple",  # otherwise each query is also printed in full, for the interface
            **({} if LONG else INTERPRETED),
        }
        self._start(
            "connect",
            "org.apache.spark.deploy.SparkSubmit",
            *("--master", self._master_address),
            *(part for name, value in settings.items() for part in ("--conf", f"{name}={value}")),
            *("--class", "org.apache.spark.sql.connect.service.SparkConnectServer", "spark-internal"),
        )
        self._wait_for("connect", self.connect_port)

    def kill(self, name: str) -> None:
        """Kill a process (master, worker-0, worker-1, connect); a worker's executors are killed with it."""
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        """Kill all processes, the last one started first."""
        for name in [*self._processes][::-1]:
            self.kill(name)

    def _start(self, name: str, *arguments: str) -> None:
        home = Path(pyspark.__file__).parent
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [home / "bin" / "spark-class", *arguments],
                cwd=self.folder,
                env={
                    **os.environ,
                    "SPARK_HOME": str(home),
                    "SPARK_CONF_DIR": str(self.folder),
                    "SPARK_DAEMON_JAVA_OPTS": JVM,
                    "SPARK_LOCAL_IP": "127.0.0.1",
                    "PYSPARK_PYTHON": sys.executable,
                    "PYTHONPATH": str(ROOT),  # the tests' own scorers
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_for(self, name: str, port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while why_unreachable("127.0.0.1", port):
            if self._processes[name].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not listen at port {port}: {self._log(name).read_text()[-2000:]}")
            time.sleep(0.2)

    @property
    def _master_address(self) -> str:
        return f"spark://127.0.0.1:{self.master_port}"

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


@contextmanager
def running(folder: Path) -> Iterator[SparkCluster]:
    """A cluster for the length of a `with` block; skips the test if none can start (in CI: fails it)."""
    services.starting("a Spark cluster")
    if reason := why_not():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    cluster = SparkCluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def why_not() -> str | None:
    """The reason why no cluster can be started here; None if one can."""
    java = shutil.which("java")
    if java is None:
        return f"a Spark cluster needs Java {LEAST_JAVA} or later; run scripts/install-spark"
    printed = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    version = re.search(r'version "(\d+)', printed)
    if version is None or int(version[1]) < LEAST_JAVA:
        return f"a Spark cluster needs Java {LEAST_JAVA} or later, and {java} is {printed.splitlines()[0]}"
    if not any(JARS.glob("delta-spark*.jar")):
        return f"a Spark cluster needs Delta Lake's jars in {JARS}; run scripts/install-spark"
    return None
