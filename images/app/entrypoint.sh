#!/usr/bin/env bash
# The beginning of every container of the app: checks what would fail later without a clear word, then becomes the
# command.
set -Eeuo pipefail

readonly DATA=/app/userdata

main() {
  if [[ ! -w $DATA ]]; then
    json-lines entrypoint <<< "error: $DATA is not writable for user $(id -u): run 'chown -R $(id -u):$(id -g)' on the folder or volume that is mounted there"
    exit 1
  fi
  exec "$@"
}

main "$@"
