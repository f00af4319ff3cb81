#!/usr/bin/env bash
# Replaces the containers of a running stack one after the other, so that nobody notices.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/replace.sh
source "$ROOT/scripts/lib/replace.sh"

services=()

usage() {
  cat <<'EOT'
Usage: scripts/rolling_restart.sh [--dry-run] [--json] [SERVICE...]

Replaces every container of a stack of the shape split or ha, one after the other, with new ones from the present images
and settings. Of worker, scheduler and web a new container is started and healthy before an old one is asked to stop; it
ends what it is doing first. valkey, postgres and nginx, of which there is one each, are replaced last: requests wait for
the database, and new connections for nginx.

  SERVICE...   only these: worker, scheduler, web, valkey, postgres, nginx
  --dry-run    say what would be replaced, and do nothing
  --json       the result as one line of JSON: {"dry_run", "replaced": {SERVICE: containers}}
  --yes        taken as every script takes it; nothing is asked
  --help       this text

While nginx is replaced (about a second), new connections are held back rather than refused where this script may change
the packet filter (root, iptables); they are accepted as soon as the new nginx is there.
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --dry-run | --json | --yes | --help) parse_common_option "$1" ;;
      worker | scheduler | web | valkey | postgres | nginx) services+=("$1") ;;
      *) usage_error "unknown argument '$1'; accepted: --dry-run, --json, --yes, --help, worker, scheduler, web, valkey, postgres, nginx" ;;
    esac
    shift
  done
}

wanted() {
  ((${#services[@]} == 0)) || [[ " ${services[*]} " == *" $1 "* ]]
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  require_engine
  [[ $(shape) != prod ]] || die "the one container cannot be replaced bit by bit; scripts/rolling_restart.sh is for the shapes split and ha"
  local service
  local -a found replaced=()
  for service in "${services[@]}"; do
    [[ -n $(containers_of "$service") ]] || die "no container of $service runs in the stack $(project_name)"
  done
  [[ -n $(containers_of nginx) ]] || die "the stack $(project_name) is not running; scripts/up.sh starts it"
  if ! $dry_run; then
    take_lock
    trap release_connections EXIT
    release_left_connections
  fi
  for service in "${DOUBLED[@]}" "${SINGLE[@]}"; do
    mapfile -t found < <(containers_of "$service")
    if ! wanted "$service" || ((${#found[@]} == 0)); then
      continue
    fi
    replaced+=("\"$service\": ${#found[@]}")
    if $dry_run; then
      $as_json || echo "$service: ${#found[@]} to be replaced"
    else
      replace_containers "$service" "${#found[@]}" "${found[@]}" ||
        die "not finished, the reason is above. What is old still runs; run this again when the reason is gone"
    fi
  done
  $dry_run || step "done: every container is new and healthy"
  if $as_json; then
    local IFS=,
    printf '{"dry_run": %s, "replaced": {%s}}\n' "$dry_run" "${replaced[*]}"
  fi
}

main "$@"
