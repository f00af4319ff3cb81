#!/usr/bin/env bash
# Writes where alerts go, then becomes Prometheus with the arguments given. (What it says is read by json-lines.)
# Reads ALERTMANAGERS: host:port of Alertmanagers, separated by commas; empty: alerts are only shown.
set -Eeuo pipefail

readonly CONFIGURATION=/etc/prometheus/prometheus.yml
readonly ALERTMANAGERS_FILE=/run/prometheus/alertmanagers.json

refuse() {
  echo "error: $*" >&2
  exit 1
}

main() {
  local -a managers
  local manager targets=
  read -ra managers <<< "${ALERTMANAGERS//,/ }"
  for manager in ${managers[@]+"${managers[@]}"}; do
    [[ $manager =~ ^[A-Za-z0-9._-]+:[0-9]{1,5}$ ]] ||
      refuse "ALERTMANAGERS holds '$manager'; accepted: host:port, separated by commas"
    targets+="${targets:+, }\"$manager\""
  done
  printf '[{"targets": [%s]}]\n' "$targets" > "$ALERTMANAGERS_FILE"
  exec prometheus --config.file="$CONFIGURATION" "$@"
}

ALERTMANAGERS=${ALERTMANAGERS-} main "$@"
