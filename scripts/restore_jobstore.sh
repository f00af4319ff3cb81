#!/usr/bin/env bash
# Brings back what a backup holds: jobs, run history, users. It starts held, until it is said what becomes of the fires
# that lie between the backup and now.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/programs.sh
source "$ROOT/scripts/lib/programs.sh"

backup=         # as it was named
undo=false
catch_up=
host_path=      # of a backup on this host, or - for standard input
received=false  # the stack holds a copy of it, to be removed unless it is restored

usage() {
  cat <<'EOT'
Usage: scripts/restore_jobstore.sh BACKUP [--catch-up=CHOICE] [--yes] [--dry-run] [--json]
       scripts/restore_jobstore.sh --undo [--catch-up=CHOICE] [--yes] [--dry-run] [--json]

Restores a backup of scripts/backup_jobstore.sh into this stack, from SQLite or from PostgreSQL, whichever the stack uses:
  1. verifies the backup; a damaged or foreign one, or one of a newer release, is refused before anything is touched
  2. stops what uses the stores, which drains its running jobs, and backs up what is there
  3. makes the restored store beside the present one, adds the runs since the backup, and puts it in place in one step
  4. starts the stack again, held: nothing fires
  5. shows what is due and not on record, and does with it what CHOICE says
Runs since the backup stay on record, and none of them runs again. Runs that the backup holds as running or waiting get
the end that the present store knows, or are lost. Safe to run again, also after it was interrupted.

  BACKUP               a name in userdata/backups/, `latest`, a folder or a tar archive of this host, or - for a tar on
                       standard input
  --undo               bring back what was there before the last restore
  --catch-up=CHOICE    of the fires that are due: skip (they are missed), run-latest (the last one of each job runs),
                       run-all. Asked for when left out; needed where nobody can be asked
  --yes                do not ask whether to restore
  --dry-run            verify, and show what would be restored and what would be due; change nothing
  --json               the result as one line of JSON
  --help               this text
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    if ! parse_common_option "$1"; then
      case $1 in
        --undo) undo=true ;;
        --catch-up=*) catch_up=${1#*=} ;;
        --catch-up)
          [[ $# -gt 1 ]] || usage_error "--catch-up needs a value: skip, run-latest or run-all"
          catch_up=$2
          shift
          ;;
        -) backup=- ;;
        -*) usage_error "unknown argument '$1'; accepted: BACKUP, --undo, --catch-up, --yes, --dry-run, --json, --help" ;;
        *)
          [[ -z $backup ]] || usage_error "one backup at a time: '$backup' or '$1'"
          [[ -n $1 ]] || usage_error "BACKUP is empty; accepted: a name, latest, a folder, a tar archive, -"
          backup=$1
          ;;
      esac
    fi
    shift
  done
  if $undo; then
    [[ -z $backup ]] || usage_error "--undo takes no BACKUP: it brings back what was there before the last restore"
  else
    [[ -n $backup ]] || usage_error "say which backup, or --undo (--help tells more)"
  fi
  if [[ -n $catch_up ]]; then
    is_choice "$catch_up" || usage_error "--catch-up is '$catch_up'; accepted: skip, run-latest, run-all"
  elif ! $dry_run && [[ ! -t 0 ]]; then
    usage_error "${backup:---undo}: nobody can be asked here what becomes of the fires that are due; say --catch-up=skip, run-latest or run-all (--dry-run shows them)"
  fi
}

is_choice() {
  [[ $1 == skip || $1 == run-latest || $1 == run-all ]]
}

# Paths count from where the script was called.
find_on_host() {
  if [[ $backup == - ]]; then
    [[ ! -t 0 ]] || die "standard input is a terminal; send a tar archive of a backup to it"
    host_path=-
  elif [[ -e $backup ]]; then
    [[ -r $backup ]] || die "$backup cannot be read"
    host_path=$(cd "$(dirname "$backup")" && pwd)/$(basename "$backup")
  elif [[ $backup == */* ]]; then
    die "there is no folder and no file $backup"
  fi
}

archive() {
  if [[ $host_path == - ]]; then
    cat
  elif [[ -d $host_path ]]; then
    tar --create --directory "$host_path" .
  else
    cat -- "$host_path"
  fi
}

# The same that `restore` asks of it, before anything is stopped.
check_backup() {
  if [[ -n $host_path ]]; then
    step "taking in and checking the backup"
    backup=$(archive | flask_with_input jobs receive-backup) || die "the backup was not taken in, the reason is above; nothing was changed"
    received=true
  else
    local found
    step "checking the backup"
    found=$(restore --check) || die "this cannot be restored, the reason is above; nothing was changed"
    $undo || backup=$found # what `latest` means now
  fi
}

restore() {
  if $undo; then
    flask_in_stack jobs restore --undo "$@"
  else
    flask_in_stack jobs restore "$backup" "$@"
  fi
}

# However this script ends, what it stopped runs again, and nothing is left behind.
clean_up() {
  local code=$?
  start_what_was_stopped
  ! $received || flask_in_stack jobs forget-received "$backup" || warn "a copy of the backup stays in userdata/restores for a day"
  exit "$code"
}

ask_catch_up() {
  until is_choice "$catch_up"; do
    read -r -p "What becomes of them: skip, run-latest or run-all? " catch_up ||
      die "the stack is restored and held; this lets it fire: docker compose exec $SERVICE flask jobs release-hold --catch-up CHOICE"
  done
}

main() {
  parse_arguments "$@"
  [[ -z $backup ]] || find_on_host
  cd "$ROOT"
  require_stack
  local -a json=()
  ! $as_json || json=(--json)
  $dry_run || take_lock
  see_what_runs
  trap clean_up EXIT
  trap 'exit 130' INT TERM
  check_backup
  if $dry_run; then # which checks it by itself
    restore --dry-run "${json[@]}"
    return
  fi
  $confirmed || [[ ! -t 0 ]] || restore --dry-run >&2
  confirm "Put this in the place of what the stack $(project_name) holds? It is stopped for it; what is there is backed up."

  local restored due released
  step "stopping what uses the stores; running jobs are drained"
  stop_programs
  step "restoring"
  restored=$(restore "${json[@]}") || die "the backup was not restored; the reason is above"
  received=false
  step "starting the stack, held"
  start_programs
  wait_until_healthy
  step "looking what is due"
  due=$(flask_in_stack jobs due)
  printf '%s\n' "$due" >&2
  ask_catch_up
  step "ending the hold: $catch_up"
  released=$(flask_in_stack jobs release-hold --catch-up "$catch_up" "${json[@]}") ||
    die "the stack is restored, and still held; the reason is above"
  step "done"
  if $as_json; then
    printf '{"restored": %s, "catch_up": "%s", "released": %s}\n' "$restored" "$catch_up" "$released"
  else
    printf '%s\n%s\nscripts/restore_jobstore.sh --undo brings back what was there before\n' "$restored" "$released"
  fi
}

main "$@"
