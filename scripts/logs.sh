#!/usr/bin/env bash
# Shows the log of all containers in the order of time: of a run, a job, a request, or all of it.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly LINES_OF_EACH=200 # where nothing narrows it

compose_options=()
reader_options=()
narrowed=false
follow=false

usage() {
  cat <<'EOT'
Usage: scripts/logs.sh [--run ID | --job ID | --request ID] [--since TIME] [--follow] [--json]

Shows what all containers of the stack have written, also when it is down, in the order of time and in readable form.

  --run ID       one run: who asked for it, who took it, what it logged, how it ended
  --job ID       a job: its runs, its changes
  --request ID   one request, by the request_id of its answer, and the run that it began
  --since TIME   from then on: a time as 2026-05-01T08:00:00, or an age such as 90s, 10m, 2h
  --follow       go on with what comes; each line as it comes
  --json         one JSON object a line, with the name of its container
  --yes, --dry-run
                 taken as every script takes them; nothing is changed anyway
  --help         this text

Without --run, --job, --request or --since it is the last 200 lines of each container. Docker keeps the last 50 MB of each
container's log (compose/services.yml), and those of a container that was replaced are gone with it.
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --run | --job | --request)
        ((${#reader_options[@]} == 0)) || usage_error "only one of --run, --job and --request"
        [[ ${2-} =~ ^[[:print:]]{1,200}$ ]] || usage_error "$1 needs an id"
        reader_options=("$1=$2")
        narrowed=true
        shift
        ;;
      --since)
        [[ ${2-} =~ ^([0-9]+[hms])+$ || ${2-} =~ ^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9:.]+(Z|[+-][0-9:]+)?)?$ ]] ||
          usage_error "--since is '${2-}'; accepted: a time as 2026-05-01T08:00:00, or an age such as 90s, 10m, 2h"
        compose_options+=(--since "$2")
        narrowed=true
        shift
        ;;
      --follow) follow=true ;;
      *)
        parse_common_option "$1" ||
          usage_error "unknown argument '$1'; accepted: --run, --job, --request, --since, --follow, --json, --yes, --dry-run, --help"
        ;;
    esac
    shift
  done
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  require_stack
  local image
  image=$(docker inspect --format '{{.Image}}' "$stack_container")
  $narrowed || compose_options+=(--tail "$LINES_OF_EACH")
  ! $as_json || reader_options+=(--json)
  if $follow; then
    compose_options+=(--follow)
    reader_options+=(--follow)
  fi
  compose logs --timestamps --no-color "${compose_options[@]}" < /dev/null |
    docker run --rm --interactive --network none --log-driver none --entrypoint python "$image" \
      -m app.services.operations.container_logs "${reader_options[@]}"
}

main "$@"
