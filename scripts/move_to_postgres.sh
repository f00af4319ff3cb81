#!/usr/bin/env bash
# Moves a stack from SQLite to PostgreSQL: from the shape prod or split to the shape ha, with all it holds.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly POSTGRES_WITHIN_S=120
# Where the shape ha keeps both stores, unless .env says otherwise.
readonly STORE=postgresql+psycopg://whalefall@postgres/whalefall

stopped=()            # the old stack's containers, between stop and start: a failure must not leave it down
report=               # what was moved
made_postgres=false   # by this run: a failure leaves no empty database behind

usage() {
  cat <<'EOT'
Usage: scripts/move_to_postgres.sh [--yes] [--dry-run] [--json]

Moves jobs, run history, users and inventory of this project from SQLite into PostgreSQL, and goes on in the shape ha:
  1. builds the images of the shape ha, makes its secrets
  2. stops the stack in order: running jobs are drained, nothing fires until the end
  3. starts PostgreSQL, copies every table into it, compares row counts and checksums, commits
  4. notes beside the SQLite files that they were moved; they stay where they are
  5. keeps the shape ha in .env, starts it, waits until it is healthy
What came due meanwhile fires then, or is on record as missed or coalesced. When something goes wrong before the commit,
the old stack is started again. Safe to run again, also after it was interrupted.

  --yes       do not ask
  --dry-run   read and count what would be moved, on the running stack; change nothing
  --json      what was moved, or would be, as one line of JSON
  --help      this text
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    parse_common_option "$1" || usage_error "unknown argument '$1'; accepted: --yes, --dry-run, --json, --help"
    shift
  done
}

check_settings() {
  local name
  for name in JOBSTORE_URL DATABASE_URL; do
    [[ $(setting "$name") != sqlite* ]] ||
      die "$name names a SQLite database, which the shape ha would go on using; take it out of .env and the environment"
  done
}

# containers FILTER...: ids of this project's containers.
containers() {
  local -a filters=()
  local filter
  for filter; do filters+=(--filter "$filter"); done
  docker ps --quiet --filter "label=com.docker.compose.project=$(project_name)" "${filters[@]}"
}

# The app's containers, running or not: all but the databases.
app_containers() {
  local service
  for service in whalefall nginx web scheduler worker; do
    containers "label=com.docker.compose.service=$service" label=com.docker.compose.oneoff=False status="$1"
  done
}

show_plan() {
  local container
  container=$(containers label=com.docker.compose.service=whalefall status=running | sed -n 1p)
  [[ -n $container ]] || container=$(containers label=com.docker.compose.service=scheduler status=running | sed -n 1p)
  [[ -n $container ]] || die "the stack is not running, so nobody can be asked what it holds; scripts/up.sh starts it"
  docker exec --env JOBSTORE_URL="$(setting JOBSTORE_URL "$STORE")" --env DATABASE_URL="$(setting DATABASE_URL "$STORE")" \
    --env LOG_LEVEL=ERROR "$container" flask jobs move-to-postgres --dry-run ${json:+"$json"}
  $as_json || echo "Nothing was changed."
}

# What the volume holds: nothing, sqlite (to be moved) or moved.
state_of_userdata() {
  # shellcheck disable=SC2016 # for the container's shell
  docker run --rm --network none --entrypoint sh --volume "$(project_name)_userdata:/data:ro" \
    "whalefall/app:$(setting WHALEFALL_TAG latest)" -c \
    'if [ -e /data/moved_to_postgres.json ]; then echo moved; elif [ -e /data/scheduler.db ]; then echo sqlite; else echo nothing; fi'
}

stop_stack() {
  step "stopping the stack; the scheduler drains its running jobs"
  mapfile -t stopped < <(app_containers running)
  # Each has the time that its compose file gives it.
  ((${#stopped[@]} == 0)) || docker stop "${stopped[@]}" > /dev/null
}

start_postgres() {
  have_volume postgres || made_postgres=true
  step "starting PostgreSQL"
  compose up --detach --no-build --wait --wait-timeout "$POSTGRES_WITHIN_S" postgres >&2 < /dev/null ||
    die "PostgreSQL does not start; the reason is above"
}

remove_postgres() {
  compose rm --stop --force postgres >&2 < /dev/null && docker volume rm "$(project_name)_postgres" > /dev/null
}

# However this script ends, the stack runs again: the old one as long as nothing was moved.
start_again() {
  local code=$?
  if ((${#stopped[@]})); then
    local state
    state=$(state_of_userdata) || state=unknown
    if [[ $state == moved ]]; then
      warn "everything is moved, but the shape ha is not running yet: scripts/move_to_postgres.sh goes on from here"
    elif [[ $state != sqlite ]]; then
      warn "not finished, and the volume $(project_name)_userdata could not be looked into: nothing is removed; run scripts/move_to_postgres.sh again when the reason is gone"
    else
      warn "not finished, nothing was moved: starting the old stack again"
      ! $made_postgres || remove_postgres || warn "the empty database stays in the volume $(project_name)_postgres"
      docker start "${stopped[@]}" > /dev/null || warn "it does not start; docker compose logs says why"
    fi
  fi
  exit "$code"
}

move() {
  stop_stack
  start_postgres
  step "copying everything into it, and comparing"
  report=$(compose run --rm -T --no-deps scheduler flask jobs move-to-postgres ${json:+"$json"} < /dev/null) ||
    die "nothing was moved; the reason is above"
}

# From here on the shape ha is what `docker compose` and the other scripts mean.
start_ha() {
  step "keeping the shape ha in .env"
  keep_setting COMPOSE_FILE "$COMPOSE_FILE"
  local -a old
  mapfile -t old < <(containers label=com.docker.compose.service=whalefall)
  mapfile -t -O "${#old[@]}" old < <(containers label=com.docker.compose.service=whalefall status=exited)
  ((${#old[@]} == 0)) || docker rm --force "${old[@]}" > /dev/null
  stopped=()
  step "starting the shape ha"
  if $as_json; then
    "$ROOT/scripts/up.sh" --shape ha >&2
    printf '%s\n' "${report:-null}"
  else
    [[ -z $report ]] || printf '%s\n' "$report"
    "$ROOT/scripts/up.sh" --shape ha
  fi
}

main() {
  parse_arguments "$@"
  json=
  ! $as_json || json=--json
  cd "$ROOT"
  require_engine
  check_settings
  have_volume userdata || die "there is no stack here whose data could be moved; scripts/up.sh --shape ha starts an empty one"
  if $dry_run; then
    show_plan
    return
  fi
  take_lock
  [[ -z $(containers label=com.docker.compose.oneoff=True) ]] ||
    die "a command of this project is still running in a container of its own (docker ps); wait for it"
  confirm "Stop the stack $(project_name) and move it to PostgreSQL? The SQLite files are kept."
  export COMPOSE_IGNORE_ORPHANS=true # those of the old shape
  use_shape ha
  prepare_build false
  build_images
  case $(state_of_userdata) in
    nothing) die "the volume $(project_name)_userdata holds no SQLite database; there is nothing to move" ;;
    moved)
      [[ -n $(setting JOBSTORE_URL) ]] || have_volume postgres ||
        die "everything was moved before, and the volume $(project_name)_postgres, where it went, is not there; going back: runbooks/move-to-postgres.md"
      step "everything was moved before"
      ;;
    sqlite)
      ensure_secrets
      trap start_again EXIT
      trap 'exit 130' INT TERM
      move
      ;;
  esac
  start_ha
}

main "$@"
