#!/usr/bin/env bash
# Gives the stack a fresh job store with the default jobs; the old one is kept aside, its history carried over.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/programs.sh
source "$ROOT/scripts/lib/programs.sh"

readonly DEFAULTS_WITHIN_S=90
readonly DAMAGED=3 # exit code of `flask db check`

soft=false
from_export=  # what --from-export named
content=      # a copy of it, when it is a file of this host

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

# However this script ends, what it stopped runs again.
start_again() {
  local code=$?
  start_what_was_stopped
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
