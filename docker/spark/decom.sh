#!/bin/bash
#
# Asks the executor in this container to decommission itself, and waits for it to go.
#
# Kubernetes runs this as the preStop hook when `spark.decommission.enabled` is set (its path is the default of
# `spark.kubernetes.decommission.script`). Spark reacts to SIGPWR: it takes no more tasks and moves its shuffle
# and cached blocks to other executors. The container is stopped when this script ends, at the latest when
# the pod's terminationGracePeriodSeconds are over.

set -uo pipefail

# Kubernetes shows the end of this file as the reason why a container ended.
log="${HEARTH_DECOM_LOG:-/dev/termination-log}"
limit="${HEARTH_DECOM_TIMEOUT:-60}"

say() {
  local line
  line="$(date -u +%FT%TZ) decommission: $1"
  echo "$line"
  if [[ -w "$log" ]]; then
    echo "$line" >> "$log"
  fi
}

# The Java process whose main class is an executor backend. tini has the same arguments, but is no java.
executor_pid() {
  local process
  local -a arguments
  for process in /proc/[0-9]*; do
    mapfile -d '' -t arguments 2> /dev/null < "$process/cmdline" || continue
    if [[ "${arguments[0]:-}" == */java && " ${arguments[*]} " == *ExecutorBackend\ * ]]; then
      echo "${process#/proc/}"
      return 0
    fi
  done
  return 1
}

if ! pid="$(executor_pid)"; then
  say "no executor is running here"
  exit 0
fi
say "asking executor process $pid to decommission itself"
if ! kill -s PWR "$pid"; then
  say "process $pid cannot be signalled"
  exit 1
fi
for ((second = 0; second < limit; second++)); do
  if [[ ! -d "/proc/$pid" ]]; then
    say "executor process $pid has ended"
    exit 0
  fi
  sleep 1
done
say "executor process $pid is still running after $limit s"
