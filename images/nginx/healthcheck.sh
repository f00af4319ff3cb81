#!/usr/bin/env bash
# Exit 0 when nginx answers and finds a web process; else say why not and exit 1.
set -Eeuo pipefail

readonly ANSWER_WITHIN_S=4 # below the health check's own limit, so that the reason is told

main() {
  local line
  exec 3<> /dev/tcp/127.0.0.1/8080
  # The name keeps it out of the access log (variables.conf).
  printf 'GET /api/v1/health/basic HTTP/1.0\r\nHost: localhost\r\nUser-Agent: whalefall-healthcheck\r\n\r\n' >&3
  read -r -t "$ANSWER_WITHIN_S" line <&3 || line="no answer within $ANSWER_WITHIN_S s"
  [[ $line == "HTTP/1.1 200 "* ]] || {
    echo "/api/v1/health/basic: $line"
    exit 1
  }
}

main "$@"
