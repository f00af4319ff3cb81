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

soft=false
from_export=  # what --from-export named
content=      # a copy of it, when it is a file of this host

services=("$SERVICE") # that are stopped where no Supervisor stops their programs
supervised=true # the container keeps running, and Supervisor in it stops and starts the programs
runs=true       # the stack keeps running, so that commands can be given inside it
stopped=false   # between stop and start: a failure must not leave the stack down

# What came of each step, for the report.
export_file=
backup=
aside=
history=
applied=

usage() {
  cat <<'EOT'
Usage: scripts/reset_jobstore.sh [--soft] [--from-export FILE] [--yes] [--dry-run] [--json]

Replaces the job store by a fresh one that holds the default jobs:
  1. exports what the API changed, and the users' own jobs, to userdata/exports/
  2. backs up both databases and verifies the copy
  3. stops the web and the scheduler (ha: and the workers), which drain their running jobs
  4. moves the job store with its -wal and -shm to userdata/backups/aside-.../; of a store in PostgreSQL the tables are
     copied there, checked, and emptied
  5. starts them again and waits until the default jobs are back
  6. applies FILE, or says at the end how to apply the export
  7. carries the run history over, as far as it can be read
Users, tokens and the database inventory are not touched. A damaged store is kept as well, and what could not be read
of it is told. Safe to run again, also after it was interrupted.

  --soft               only the jobs, through the API, with nothing stopped: exports, deletes every job (own ones can be
                       restored for 30 days), registers the default jobs. History, store and stack stay as they are
  --from-export FILE   apply this export to the fresh store (of scripts/export_jobs.sh, or an earlier one): a file of
                       this host, or a name in userdata/exports/. It is checked before anything else
  --yes                do not ask
  --dry-run            check, and say what would be done; change nothing
  --json               the result as one line of JSON
  --help               this text
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    if ! parse_common_option "$1"; then
      case $1 in
        --soft) soft=true ;;
        --from-export)
          [[ $# -gt 1 && -n $2 && $2 != --* ]] || usage_error "--from-export needs a value: a file, or a name in userdata/exports/"
          from_export=$2
          shift
          ;;
        *) usage_error "unknown argument '$1'; accepted: --soft, --from-export, --yes, --dry-run, --json, --help" ;;
      esac
    fi
    shift
  done
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
    is_healthy || runs=false
    return
  fi
  while ! is_healthy; do
    # Its exit code tells that some are stopped, as after a reset that was interrupted: no failure here.
    status=$(in_stack supervisorctl status "${PROGRAMS[@]}" 2> /dev/null) || true
    settled=$(grep -cE ' (RUNNING|STOPPED) ' <<< "$status ") || true # grep fails on a count of 0
    [[ $settled -lt ${#PROGRAMS[@]} ]] || return 0
    if [[ $status != *STARTING* || $SECONDS -ge $SETTLED_WITHIN_S ]]; then
      supervised=false
      runs=false
      warn "the stack does not keep running; working in a container beside it"
      return 0
    fi
    sleep 1
  done
}

# Standard input goes to the command.
flask_with_input() {
  if $supervised || { $runs && ! $stopped; }; then
    docker compose exec -T "$SERVICE" flask "$@"
  else
    docker compose run --rm -T --no-deps "$SERVICE" flask "$@"
  fi
}

flask_in_stack() {
  flask_with_input "$@" < /dev/null
}

# The export as a local file, or nothing for one that the stack keeps.
fetch_content() {
  [[ -e $from_export ]] || return 0
  content=$(mktemp)
  trap 'rm -f "$content"' EXIT
  cat -- "$from_export" > "$content" || die "$from_export cannot be read"
}

# apply_export OPTION...: `flask jobs apply-export` of what --from-export named.
apply_export() {
  if [[ -n $content ]]; then
    flask_with_input jobs apply-export - "$@" < "$content"
  else
    flask_in_stack jobs apply-export "$from_export" "$@"
  fi
}

check_export() {
  local found
  [[ -n $from_export ]] || return 0
  found=$(apply_export --onto-defaults) || die "a fresh store could not take the export $from_export; nothing was changed"
  # `latest` means the one of now, not the one that the reset writes.
  [[ -n $content ]] || from_export=$found
}

# Empty `applied` says that it could not be done.
apply_what_was_asked_for() {
  [[ -n $from_export ]] || return 0
  step "applying the export $from_export"
  applied=$(apply_export ${as_json_option:+"$as_json_option"}) || applied=
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
  local deadline=$((SECONDS + HEALTHY_WITHIN_S)) service
  local -a found=()
  if ! $supervised; then
    for service in "${services[@]}"; do mapfile -t -O "${#found[@]}" found < <(containers_of "$service"); done
    wait_until_containers_healthy "$HEALTHY_WITHIN_S" "${found[@]}" ||
      die "$unhealthy_container is not healthy; its last words are above"
    return
  fi
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
  [[ -z $content ]] || rm -f "$content"
  exit "$code"
}

show_plan() {
  if $soft; then
    flask_in_stack jobs reload --dry-run ${as_json_option:+"$as_json_option"}
    return
  fi
  if $as_json; then
    printf '{"store": %s, "export": %s, "dry_run": true}\n' "$(json_text "$1")" "$(json_text "$from_export")"
    return
  fi
  cat <<EOT
Would replace the job store $1:
  export what the API changed, back up, verify
  stop: $(if $supervised; then echo "the web and the scheduler"; else echo "${services[*]}"; fi)
  move the store with all it holds to userdata/backups/aside-.../
  start them again, wait for the default jobs
  carry the run history over
EOT
  [[ -z $from_export ]] || echo "  apply the export $from_export"
  echo "Nothing was changed."
}

# A text as JSON; an empty one is null.
json_text() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  if [[ -n $text ]]; then printf '"%s"' "$text"; else printf 'null'; fi
}

report() {
  if $as_json; then
    printf '{"soft": %s, "aside": %s, "backup": %s, "export": %s, "history": %s, "applied": %s}\n' "$soft" \
      "$(json_text "$aside")" "$(json_text "$backup")" "$(json_text "$export_file")" "${history:-null}" "${applied:-null}"
    return
  fi
  [[ -z $aside ]] || echo "old store: $aside"
  [[ -z $backup ]] || echo "backup:    $backup"
  [[ -z $history ]] || echo "history:   $history"
  [[ -z $export_file ]] || echo "export:    $export_file"
  if [[ -n $from_export ]]; then
    echo "The default jobs are back, and the export $from_export is applied:"
    printf '%s\n' "$applied"
  elif [[ -n $export_file ]]; then
    echo "The default jobs are back. Review the export; this brings back what the API had changed, and the own jobs:"
    echo "  scripts/import_jobs.sh ${export_file##*/}"
  else
    echo "The default jobs are back. What the API had changed could not be read; there may be older exports:"
    echo "  docker compose exec $SERVICE ls userdata/exports"
  fi
}

reset_softly() {
  require_running_stack
  confirm "Delete every job of the stack $(project_name) and register the default jobs again?"
  step "exporting the jobs, deleting them, registering the default jobs, through the API"
  export_file=$(in_stack flask jobs reload)
  step "waiting for the default jobs"
  in_stack flask jobs wait-defaults --timeout "$DEFAULTS_WITHIN_S" >&2 ||
    die "the default jobs are not back; docker compose logs $SERVICE says why. What was there is in $export_file"
  apply_what_was_asked_for
}

reset_store() {
  confirm "Replace the job store $1 by a fresh one? The old one is kept."
  save_what_can_be_saved
  trap start_again EXIT
  trap 'exit 130' INT TERM
  step "stopping the web and the scheduler, which drains its running jobs"
  stop_programs
  step "moving $1 aside"
  aside=$(flask_in_stack jobs set-aside --reason reset ${backup:+--backup "$backup"})
  step "starting them again"
  start_programs
  runs=true
  step "waiting for the default jobs"
  flask_in_stack jobs wait-defaults --timeout "$DEFAULTS_WITHIN_S" >&2 ||
    die "the default jobs are not back; docker compose logs $SERVICE says why. The old store is in $aside"
  # Before the history, so that what came due meanwhile is on record of the own jobs as well.
  apply_what_was_asked_for
  step "carrying the run history over"
  history=$(flask_in_stack jobs carry-history ${as_json_option:+"$as_json_option"}) ||
    warn "the history was not carried over; the old store stays in $aside"
}

main() {
  parse_arguments "$@"
  as_json_option=
  ! $as_json || as_json_option=--json
  fetch_content
  cd "$ROOT"
  require_stack
  case $(shape) in
    split) services=(web scheduler) ;;
    ha) services=(web scheduler worker) ;;
  esac
  $dry_run || take_lock
  local store=
  if $soft; then
    [[ $(shape) == prod ]] || supervised=false
  else
    see_what_runs
    store=$(flask_in_stack jobs set-aside --dry-run)
  fi
  check_export
  if $dry_run; then
    show_plan "$store"
    return
  fi
  if $soft; then
    reset_softly
  else
    reset_store "$store"
  fi
  wait_until_healthy
  [[ -z $from_export || -n $applied ]] ||
    die "the default jobs are back, but the export was not applied (the reason is above); scripts/import_jobs.sh applies it, and ${export_file:-the old store in $aside} has what was there"
  step "done"
  report
}

main "$@"
