#!/usr/bin/env bash
# Replaces the containers of a running stack one after the other, so that nobody notices.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly HEALTHY_WITHIN_S=120
# Those that are doubled before one goes, then those of which there is one. What others need comes before them, so that
# an address that is gone is asked for once.
readonly DOUBLED=(worker scheduler web) SINGLE=(valkey postgres nginx)

services=()
dry_run=false
held_port=

usage() {
  cat <<'EOT'
Usage: scripts/rolling_restart.sh [--dry-run] [SERVICE...]

Replaces every container of a stack of the shape split or ha, one after the other, with new ones from the present images
and settings. Of worker, scheduler and web a new container is started and healthy before an old one is asked to stop; it
ends what it is doing first. valkey, postgres and nginx, of which there is one each, are replaced last: requests wait for
the database, and new connections for nginx.

  SERVICE...   only these: worker, scheduler, web, valkey, postgres, nginx
  --dry-run    say what would be replaced, and do nothing
  --help       this text

While nginx is replaced (about a second), new connections are held back rather than refused where this script may change
the packet filter (root, iptables); they are accepted as soon as the new nginx is there.
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --dry-run) dry_run=true ;;
      --help)
        usage
        exit 0
        ;;
      worker | scheduler | web | valkey | postgres | nginx) services+=("$1") ;;
      *) usage_error "unknown argument '$1'; accepted: --dry-run, --help, worker, scheduler, web, valkey, postgres, nginx" ;;
    esac
    shift
  done
}

wanted() {
  ((${#services[@]} == 0)) || [[ " ${services[*]} " == *" $1 "* ]]
}

wait_until_healthy() {
  wait_until_containers_healthy "$HEALTHY_WITHIN_S" "$@" ||
    die "$unhealthy_container is not healthy; its last words are above. What is old still runs; run this again when the reason is gone"
}

# One more is started and healthy before an old one stops: at no moment are there fewer than before.
replace_doubled() {
  local service=$1 old number=0
  local -a before=() after=()
  mapfile -t before < <(containers_of "$service")
  for old in "${before[@]}"; do
    number=$((number + 1))
    step "$service: replacing $number of ${#before[@]}"
    compose up --detach --no-build --no-deps --no-recreate --scale "$service=$((${#before[@]} + 1))" "$service" >&2 < /dev/null ||
      die "no further $service could be started; the reason is above. What is old still runs"
    mapfile -t after < <(containers_of "$service")
    wait_until_healthy "${after[@]}"
    docker stop "$old" > /dev/null
    docker rm "$old" > /dev/null
  done
}

replace_single() {
  local service=$1
  local -a now
  step "$service: replacing it"
  [[ $service != nginx ]] || hold_connections
  compose up --detach --no-build --no-deps --force-recreate "$service" >&2 < /dev/null ||
    die "$service could not be started; the reason is above"
  mapfile -t now < <(containers_of "$service")
  [[ $service != nginx ]] || wait_until_nginx_answers "${now[@]}"
  release_connections
  wait_until_healthy "${now[@]}"
}

# Docker looks every few seconds only; connections are held no longer than they must be.
wait_until_nginx_answers() {
  local deadline=$((SECONDS + HEALTHY_WITHIN_S))
  until docker exec "$1" healthcheck.sh > /dev/null 2>&1; do
    ((SECONDS < deadline)) || break # wait_until_healthy says why
    sleep 0.1
  done
}

# A first packet that gets no answer is sent again after a second; one that is refused is a failed request.
hold_connections() {
  local port
  port=$(compose port nginx 8080)
  port=${port##*:}
  if ! is_root || ! has iptables; then
    warn "new connections are refused while nginx is replaced: holding them back needs root and iptables"
    return
  fi
  held_port=$port
  trap release_connections EXIT
  change_filter --insert
}

release_connections() {
  [[ -n $held_port ]] || return 0
  change_filter --delete
  held_port=
}

change_filter() {
  local chain
  for chain in PREROUTING OUTPUT; do
    iptables --wait --table raw "$1" "$chain" --protocol tcp --dport "$held_port" --syn --jump DROP ||
      warn "iptables did not $1 the rule in $chain"
  done
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  require_engine
  [[ $(shape) != prod ]] || die "the one container cannot be replaced bit by bit; scripts/rolling_restart.sh is for the shapes split and ha"
  local service
  local -a found
  for service in "${services[@]}"; do
    [[ -n $(containers_of "$service") ]] || die "no container of $service runs in the stack $(project_name)"
  done
  [[ -n $(containers_of nginx) ]] || die "the stack $(project_name) is not running; scripts/up.sh starts it"
  for service in "${DOUBLED[@]}" "${SINGLE[@]}"; do
    mapfile -t found < <(containers_of "$service")
    if ! wanted "$service" || ((${#found[@]} == 0)); then
      continue
    fi
    if $dry_run; then
      echo "$service: ${#found[@]} to be replaced"
    elif [[ " ${DOUBLED[*]} " == *" $service "* ]]; then
      replace_doubled "$service"
    else
      replace_single "$service"
    fi
  done
  $dry_run || step "done: every container is new and healthy"
}

main "$@"
