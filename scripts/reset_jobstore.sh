#!/usr/bin/env bash
# Gives the stack a fresh job store with the default jobs; the old one is kept aside, its history carried over.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly PROGRAMS=(whalefall_web whalefall_scheduler) # in the order of stopping
readonly DEFAULTS_WITHIN_S=90
readonly SETTLED_WITHIN_S=30 # longer than a program's startsecs
readonly HEALTHY_WITHIN_S=90
readonly DAMAGED=3 # exit code of `flask db check`

confirmed=false
dry_run=false
services=("$SERVICE") # that are stopped where no Supervisor stops their programs
supervised=true # the container keeps running, and Supervisor in it stops and starts the programs
stopped=false   # between stop and start: a failure must not leave the stack down

# What came of each step, for the report.
export_file=
backup=
aside=
history=

usage() {
  cat <<'EOT'
Usage: scripts/reset_jobstore.sh [--yes] [--dry-run]

Replaces the job store by a fresh one that holds the default jobs:
  1. exports what the API changed, and the users' own jobs, to userdata/exports/
  2. backs up both databases and verifies the copy
  3. stops the web and the scheduler, which drains its running jobs
  4. moves the job store with its -wal and -shm to userdata/backups/aside-.../
  5. starts both again and waits until the default jobs are back
  6. carries the run history over, as far as it can be read
  7. says how to apply the export
Users, tokens and the database inventory are not touched. A damaged store is kept as well, and what could not be read
of it is told. Safe to run again, also after it was interrupted.

  --yes       do not ask
  --dry-run   check, and say what would be done; change nothing
  --help      this text
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --yes) confirmed=true ;;
      --dry-run) dry_run=true ;;
      --help)
        usage
        exit 0
        ;;
      *) usage_error "unknown argument '$1'; accepted: --yes, --dry-run, --help" ;;
    esac
    shift
  done
}

# Two resets at once would move each other's store. The lock ends with this process, whatever ends it.
take_lock() {
  exec {lock}< "${BASH_SOURCE[0]}"
  flock --nonblock "$lock" || die "another reset is running; wait for it"
}

is_healthy() {
  local -a asked=()
  [[ $(shape) == prod ]] || asked=(5002 /api/v1/scheduler/health/ready)
  in_stack python3 -I -S /usr/local/bin/healthcheck.py "${asked[@]}" > /dev/null 2>&1
}

# A container that starts over and over (a damaged store does that) is stopped as a whole, and looked after from a
# container beside it.
see_what_runs() {
  local status settled
  if [[ $(shape) != prod ]]; then
    supervised=false
    return
  fi
  while ! is_healthy; do
    # Its exit code tells that some are stopped, as after a reset that was interrupted: no failure here.
    status=$(in_stack supervisorctl status "${PROGRAMS[@]}" 2> /dev/null) || true
    settled=$(grep -cE ' (RUNNING|STOPPED) ' <<< "$status ") || true # grep fails on a count of 0
    [[ $settled -lt ${#PROGRAMS[@]} ]] || return 0
    if [[ $status != *STARTING* || $SECONDS -ge $SETTLED_WITHIN_S ]]; then
      supervised=false
      warn "the stack does not keep running; working in a container beside it"
      return 0
    fi
    sleep 1
  done
}

flask_in_stack() {
  if $supervised; then in_stack flask "$@"; else beside_stack flask "$@"; fi
}

confirm() {
  $confirmed && return
  [[ -t 0 ]] || die "this replaces the job store: say --yes (or --dry-run to see what would be done)"
  local answer
  read -r -p "Replace the job store $1 by a fresh one? The old one is kept. [y/N] " answer
  [[ $answer == [yY] || $answer == [yY][eE][sS] ]] || die "nothing was changed"
}

# Empty variables say what could not be done.
save_what_can_be_saved() {
  step "exporting what the API changed"
  export_file=$(flask_in_stack jobs export --reason reset) || export_file=
  step "backing up"
  backup=$(flask_in_stack jobs backup --reason reset) || backup=
  if [[ -n $backup ]]; then
    step "verifying $backup"
    flask_in_stack jobs verify "$backup" > /dev/null
  fi
  [[ -z $export_file || -z $backup ]] || return 0
  local code=0
  flask_in_stack db check --store jobstore >&2 || code=$?
  [[ $code -eq $DAMAGED ]] || die "the job store is sound, but was not saved (the reason is above); nothing was changed"
  warn "the job store is damaged; it is kept aside as it is"
}

stop_programs() {
  stopped=true
  if $supervised; then
    in_stack supervisorctl stop "${PROGRAMS[@]}" >&2
  else
    docker compose stop "${services[@]}" >&2
  fi
}

start_programs() {
  local program
  if $supervised; then
    # Both at once and not waited for: supervisorctl returns only when one has run for its startsecs, and nobody fires
    # meanwhile. What follows sees for itself whether they work.
    for program in "${PROGRAMS[@]}"; do
      in_stack supervisorctl start "$program" > /dev/null &
    done
  else
    docker compose start "${services[@]}" >&2
  fi
  stopped=false
}

wait_until_healthy() {
  local deadline=$((SECONDS + HEALTHY_WITHIN_S))
  until is_healthy; do
    [[ $SECONDS -lt $deadline ]] || die "the stack is not healthy; docker compose logs $SERVICE says why"
    sleep 0.5
  done
}

# However this script ends, what it stopped runs again.
start_again() {
  local code=$?
  if $stopped; then
    warn "not finished: starting the stack again"
    start_programs || warn "it does not start; docker compose logs $SERVICE says why"
  fi
  exit "$code"
}

show_plan() {
  cat <<EOT
Would replace the job store $1:
  export what the API changed, back up, verify
  stop the web and the scheduler
  move the store with its -wal and -shm to userdata/backups/aside-.../
  start them again, wait for the default jobs
  carry the run history over
Nothing was changed.
EOT
}

report() {
  echo "old store: $aside"
  [[ -z $backup ]] || echo "backup:    $backup"
  [[ -z $history ]] || echo "history:   $history"
  if [[ -n $export_file ]]; then
    echo "export:    $export_file"
    echo "The default jobs are back. Review the export; this brings back what the API had changed, and the own jobs:"
    echo "  docker compose exec $SERVICE flask jobs apply-export ${export_file##*/}"
  else
    echo "The default jobs are back. What the API had changed could not be read; there may be older exports:"
    echo "  docker compose exec $SERVICE ls userdata/exports"
  fi
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  require_stack
  case $(shape) in
    split) services=(web scheduler) ;;
    ha) die "the jobs of this stack are in PostgreSQL, of which this script replaces nothing; a backup: docker compose exec postgres pg_dump --username=whalefall whalefall" ;;
  esac
  take_lock
  see_what_runs
  local store
  store=$(flask_in_stack jobs set-aside --dry-run)
  if $dry_run; then
    show_plan "$store"
    return
  fi
  confirm "$store"

  save_what_can_be_saved
  trap start_again EXIT
  trap 'exit 130' INT TERM
  step "stopping the web and the scheduler, which drains its running jobs"
  stop_programs
  step "moving $store aside"
  aside=$(flask_in_stack jobs set-aside --reason reset ${backup:+--backup "$backup"})
  step "starting them again"
  start_programs
  step "waiting for the default jobs"
  flask_in_stack jobs wait-defaults --timeout "$DEFAULTS_WITHIN_S" >&2 ||
    die "the default jobs are not back; docker compose logs $SERVICE says why. The old store is in $aside"
  step "carrying the run history over"
  history=$(flask_in_stack jobs carry-history) || warn "the history was not carried over; the old store stays in $aside"
  wait_until_healthy
  step "done"
  report
}

main "$@"
