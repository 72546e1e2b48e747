# Processor seconds of a driver and of its executor, which starts as in Kubernetes, until it is registered and until the
# first query has returned. Prints one line of JSON.
import json
import os
import sys

import cluster
from pyspark.sql import SparkSession

HERTZ = os.sysconf("SC_CLK_TCK")


def stat(pid):
    with open("/proc/%d/stat" % pid) as file:
        return file.read().rpartition(") ")[2].split()


# User and system time of a process, and of the children that it has waited for.
def spent(pid):
    return sum(int(field) for field in stat(pid)[11:15]) / HERTZ


def parent(pid):
    return int(stat(pid)[1])


def driver():
    total, pid = 0, os.getppid()
    while pid > 0:
        total, pid = total + spent(pid), parent(pid)
    return total


def executor():
    root = cluster.processes[0].pid
    total = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            pid = above = int(name)
            while above not in (0, root):
                above = parent(above)
            total += spent(pid) if above == root else 0
        except (FileNotFoundError, ProcessLookupError):
            pass
    return total


def age():
    with open("/proc/uptime") as file:
        return float(file.read().split()[0]) - int(stat(cluster.processes[0].pid)[19]) / HERTZ


spark = SparkSession.builder.master(cluster.serve()).getOrCreate()
# The context waits for its executor (`spark.scheduler.minRegisteredResourcesRatio`).
found = {"executor_registered": executor(), "driver_registered": driver(), "wall_registered": age()}
rows = spark.sql("select id % 11 as remainder, sum(id), min(hash(id)) from range(0, 500000, 1, 4) group by 1").collect()
assert len(rows) == 11
found.update(executor_first_query=executor(), driver_first_query=driver(), wall_first_query=age())
print("measured " + json.dumps(found), flush=True)
spark.stop()
for process in cluster.processes:
    process.wait(60)
