#!/bin/bash
#
# Java of a driver or executor in an image with an archive of class data (`jvm: { classDataSharing: true }`). The entry
# point sets JAVA_HOME to the directory above this one, so that Spark's own scripts start this instead of Java.
#
# Java uses such an archive only when the class path begins as it did when the archive was made: with Spark's JARs in
# the order of the file `classes.path`. They come first here, and configuration directories behind them. That makes a
# difference only when a directory has a file that also lies at the top of a JAR (the file `classes.top`): then, and when
# something other than a directory precedes Spark's JARs, Java starts with the class path that Spark wants, without the
# archive.

set -euo pipefail

here="$SPARK_HOME/hearth"
java="${HEARTH_JAVA_HOME:?it is set by /opt/entrypoint.sh}/bin/java"
arguments=("$@")

start() {
  # What Spark starts from here on finds Java where it is. The launcher prints the command of the driver, which is
  # started by this script again.
  if [[ "$main" != org.apache.spark.launcher.Main ]]; then
    export JAVA_HOME="$HEARTH_JAVA_HOME"
    unset HEARTH_JAVA_HOME
  fi
  exec "$java" "$@"
}

plain() {
  if [[ -n "${1:-}" ]]; then
    printf 'entrypoint: Java starts without the archive of class data: %s\n' "$1" >&2
  fi
  start ${arguments[@]+"${arguments[@]}"}
}

# Where the class path is, how large the heap may be, and what is started. The user's own options win.
main=
at=
heap=0
reason=
options() {
  local number argument name
  local other='(^|[[:space:]])-(Xshare:|XX:SharedArchiveFile=|XX:AOT)'
  for name in JAVA_TOOL_OPTIONS JDK_JAVA_OPTIONS _JAVA_OPTIONS; do
    if [[ "${!name:-}" =~ $other ]]; then
      reason="$name chooses another"
    fi
  done
  for ((number = 0; number < ${#arguments[@]}; number++)); do
    argument="${arguments[number]}"
    case "$argument" in
      -Xshare:* | -XX:SharedArchiveFile=* | -XX:AOT*) reason="$argument is among the Java options" ;;
      -Xmx*) heap="${argument#-Xmx}" ;;
      -XX:MaxHeapSize=*) heap="${argument#*=}" ;;
      -cp | -classpath | --class-path) at=$((++number)) ;;
      -p | --module-path | --add-modules | --add-opens | --add-exports | --add-reads) ((++number)) ;;
      -*) ;;
      *)
        main="$argument"
        return
        ;;
    esac
  done
}

# Java addresses objects in another way in a heap of 32 GiB or more, and then uses no such archive.
large() {
  local number unit
  [[ "$heap" =~ ^([0-9]+)([kKmMgGtT]?)$ ]] || return 1
  number="${BASH_REMATCH[1]}"
  unit="${BASH_REMATCH[2]}"
  case "$unit" in
    [kK]) ((number >= 32 << 20)) ;;
    [mM]) ((number >= 32 << 10)) ;;
    [gG]) ((number >= 32)) ;;
    [tT]) ((number >= 1)) ;;
    *) ((number >= 32 << 30)) ;;
  esac
}

# The JARs in Spark's directory that the archive does not know, such as those of an image built on top of this one.
more=
unknown() {
  local LC_ALL=C IFS=: present jar first="${known%%:*}"
  shopt -s nullglob
  set -- "$SPARK_HOME"/jars/*.jar
  present="$*"
  # All but the first are in order.
  present="$first:${present/:"$first"/}"
  if [[ "$present" != "$known" ]]; then
    for jar in "$@"; do
      if [[ ":$known:" != *":$jar:"* ]]; then
        more+=":$jar"
      fi
    done
  fi
}

# Puts the JARs first.
arranged=
arrange() {
  local IFS=: part file found= behind=
  local -a parts
  set -f
  # shellcheck disable=SC2206
  parts=(${arguments[at]})
  set +f
  for part in ${parts[@]+"${parts[@]}"}; do
    if [[ "$part" == "$SPARK_HOME/jars/*" ]]; then
      found=yes
      continue
    fi
    # Spark 4 names the JAR of slf4j once more, before all others: it is the first one anyway.
    if [[ -z "$found" && "$known" == "$part:"* ]]; then
      continue
    fi
    behind+=":$part"
    if [[ -n "$found" ]]; then
      continue
    fi
    if [[ "$part" == *'*' || -f "$part" ]]; then
      reason="$part precedes Spark's JARs"
      return
    fi
    for file in "$part"/*; do
      if [[ "$top" == *$'\n'"${file##*/}"$'\n'* ]]; then
        reason="$file has the name of a file in Spark's JARs"
        return
      fi
    done
  done
  if [[ -z "$found" ]]; then
    reason="the class path does not have Spark's JARs"
    return
  fi
  arranged="$known$more$behind"
}

options
if [[ -z "$at" || -z "${arguments[at]:-}" || -z "$main" ]]; then
  plain
fi
if [[ -n "$reason" ]]; then
  plain "$reason"
fi
if large; then
  plain "the heap has $heap"
fi
{ read -r home && read -r known; } < "$here/classes.path"
if [[ "$home" != "$HEARTH_JAVA_HOME" ]]; then
  plain "it belongs to $home, and JAVA_HOME is $HEARTH_JAVA_HOME"
fi
top=$'\n'"$(< "$here/classes.top")"$'\n'
unknown
arrange
if [[ -n "$reason" ]]; then
  plain "$reason"
fi
arguments[at]="$arranged"
if [[ -n "${HEARTH_TRAINING:-}" ]]; then
  start "-XX:DumpLoadedClassList=$HEARTH_TRAINING/$$.classes" "${arguments[@]}"
fi
start "-XX:SharedArchiveFile=$here/classes.jsa" -Xshare:auto "${arguments[@]}"
