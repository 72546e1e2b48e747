#!/bin/bash
#
# Entry point of the Spark images that `hearth build` makes.
#
#   driver ARGUMENTS..   spark-submit in client mode, as started by spark-submit and the Spark operators
#   driver-py, driver-r  the same for Spark 2.4, which passes the application in variables
#   executor             the executor process of this Spark line
#   anything else        is run as it is (Spark Connect, the history server, a shell)
#
# What differs between Spark lines is in $SPARK_HOME/hearth.env, written by the builder beside the Spark it
# belongs to. Nothing is written to the file system unless the user id has no name (see name_user), so the
# image works with a read-only root.

set -euo pipefail

SPARK_HOME="${SPARK_HOME:-/opt/spark}"
export SPARK_HOME

HEARTH_EXECUTOR_BACKEND=org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend
HEARTH_RESOURCE_PROFILE=yes
HEARTH_POD_NAME=yes
if [[ -r "$SPARK_HOME/hearth.env" ]]; then
  # shellcheck source=/dev/null
  source "$SPARK_HOME/hearth.env"
fi

say() {
  printf 'entrypoint: %s\n' "$1" >&2
}

fail() {
  say "$1"
  exit 2
}

need() {
  local name
  for name in "$@"; do
    [[ -n "${!name:-}" ]] || fail "$name is not set; Spark sets it on the pods that it starts"
  done
}

# Some clusters run containers under a user id of their own choice, which /etc/passwd does not know. Java then
# calls the user `?` and Hadoop refuses to log in. nss_wrapper answers with a file of ours instead.
name_user() {
  local uid gid library directory
  uid="$(id -u)"
  gid="$(id -g)"
  if id -nu > /dev/null 2>&1; then
    return
  fi
  for library in /usr/lib/libnss_wrapper.so /usr/lib64/libnss_wrapper.so /usr/lib/*/libnss_wrapper.so; do
    if [[ -r "$library" ]]; then
      if ! directory="$(mktemp -d 2> /dev/null)"; then
        say "user id $uid has no name, and there is no writable directory to give it one"
        return
      fi
      printf '%s:x:%s:%s:%s:%s:/bin/false\n' "${SPARK_USER_NAME:-spark}" "$uid" "$gid" \
        "${SPARK_USER_NAME:-anonymous}" "$SPARK_HOME" > "$directory/passwd"
      printf '%s:x:%s:\n' "${SPARK_USER_NAME:-spark}" "$gid" > "$directory/group"
      export NSS_WRAPPER_PASSWD="$directory/passwd" NSS_WRAPPER_GROUP="$directory/group"
      export LD_PRELOAD="$library${LD_PRELOAD:+:$LD_PRELOAD}"
      return
    fi
  done
  say "user id $uid has no name, and libnss_wrapper is not installed: Hadoop may refuse to log in"
}

# SPARK_JAVA_OPT_0, _1 .. _10 are the executor's Java options. Bash walks an indexed array by number, so 10
# comes after 2, and values may hold spaces and line ends.
java_options() {
  local name number
  local -a numbered=()
  for name in "${!SPARK_JAVA_OPT_@}"; do
    number="${name#SPARK_JAVA_OPT_}"
    if [[ "$number" =~ ^[0-9]+$ ]]; then
      numbered[10#$number]="${!name}"
    fi
  done
  JAVA_OPTIONS=(${numbered[@]+"${numbered[@]}"})
}

class_path() {
  local part
  local -a parts=(
    "${SPARK_CONF_DIR:-$SPARK_HOME/conf}"
    "${HADOOP_CONF_DIR:-}"
    "${SPARK_CLASSPATH:-}"
    "$SPARK_HOME/jars/*"
    "${SPARK_EXTRA_CLASSPATH:-}"
    "$PWD"
    "${SPARK_DIST_CLASSPATH:-}"
  )
  CLASS_PATH=
  for part in "${parts[@]}"; do
    if [[ -n "$part" ]]; then
      CLASS_PATH="${CLASS_PATH:+$CLASS_PATH:}$part"
    fi
  done
}

# tini reaps what Spark leaves behind and passes signals on; -s also when it is not process 1.
launch() {
  local tini
  name_user
  if tini="$(command -v tini)"; then
    exec "$tini" -s -- "$@"
  fi
  exec "$@"
}

# With an archive of class data Java starts by a script that uses it.
class_data() {
  local directory="$SPARK_HOME/hearth"
  if [[ -n "${JAVA_HOME:-}" && -x "$directory/bin/java" ]] &&
    [[ -r "$directory/classes.jsa" || -n "${HEARTH_TRAINING:-}" ]]; then
    export HEARTH_JAVA_HOME="$JAVA_HOME" JAVA_HOME="$directory"
  fi
}

submit() {
  need SPARK_DRIVER_BIND_ADDRESS
  class_data
  launch "$SPARK_HOME/bin/spark-submit" \
    --conf "spark.driver.bindAddress=$SPARK_DRIVER_BIND_ADDRESS" \
    --conf "spark.executorEnv.SPARK_DRIVER_POD_IP=$SPARK_DRIVER_BIND_ADDRESS" \
    --deploy-mode client "$@"
}

# Spark 2.4 passes lists of arguments as one string each.
words() {
  read -r -a WORDS <<< "${1:-}" || true
}

executor() {
  local -a command
  need SPARK_EXECUTOR_MEMORY SPARK_DRIVER_URL SPARK_EXECUTOR_ID SPARK_EXECUTOR_CORES \
    SPARK_APPLICATION_ID SPARK_EXECUTOR_POD_IP
  if [[ -z "${JAVA_HOME:-}" ]]; then
    local java
    java="$(command -v java)" || fail "JAVA_HOME is not set and there is no java in PATH"
    java="$(readlink -f "$java")"
    JAVA_HOME="${java%/bin/java}"
  fi
  if [[ -n "${HADOOP_HOME:-}" && -z "${SPARK_DIST_CLASSPATH:-}" ]]; then
    SPARK_DIST_CLASSPATH="$("$HADOOP_HOME/bin/hadoop" classpath)"
    export SPARK_DIST_CLASSPATH
  fi
  java_options
  class_path
  class_data
  command=("$JAVA_HOME/bin/java" ${JAVA_OPTIONS[@]+"${JAVA_OPTIONS[@]}"})
  command+=("-Xms$SPARK_EXECUTOR_MEMORY" "-Xmx$SPARK_EXECUTOR_MEMORY" -cp "$CLASS_PATH")
  command+=("$HEARTH_EXECUTOR_BACKEND")
  command+=(--driver-url "$SPARK_DRIVER_URL" --executor-id "$SPARK_EXECUTOR_ID")
  command+=(--cores "$SPARK_EXECUTOR_CORES" --app-id "$SPARK_APPLICATION_ID")
  command+=(--hostname "$SPARK_EXECUTOR_POD_IP")
  if [[ "$HEARTH_RESOURCE_PROFILE" == yes ]]; then
    command+=(--resourceProfileId "${SPARK_RESOURCE_PROFILE_ID:-0}")
  fi
  if [[ "$HEARTH_POD_NAME" == yes && -n "${SPARK_EXECUTOR_POD_NAME:-}" ]]; then
    command+=(--podName "$SPARK_EXECUTOR_POD_NAME")
  fi
  launch "${command[@]}"
}

case "${1:-}" in
  driver)
    shift
    submit "$@"
    ;;
  driver-py)
    shift
    need PYSPARK_PRIMARY
    if [[ -n "${PYSPARK_FILES:-}" ]]; then
      export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PYSPARK_FILES"
    fi
    words "${PYSPARK_APP_ARGS:-}"
    submit "$@" "$PYSPARK_PRIMARY" ${WORDS[@]+"${WORDS[@]}"}
    ;;
  driver-r)
    shift
    need R_PRIMARY
    words "${R_APP_ARGS:-}"
    submit "$@" "$R_PRIMARY" ${WORDS[@]+"${WORDS[@]}"}
    ;;
  executor)
    executor
    ;;
  "")
    fail "nothing to run: give driver, executor or a command, such as spark-submit"
    ;;
  *)
    name_user
    exec "$@"
    ;;
esac
