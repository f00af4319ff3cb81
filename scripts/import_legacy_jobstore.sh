#!/usr/bin/env bash
# Takes over triggers and pauses of an older app's job store: APScheduler 3, whose pickles are read and never loaded.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

file=
from_store=false
options=() # for the command in the container

usage() {
  cat <<'EOT'
Usage: scripts/import_legacy_jobstore.sh FILE|--from-store [--map FUNC=TASK]... [--overwrite] [--table NAME]
                                         [--yes] [--dry-run] [--json]

Takes over the jobs of an older app from its APScheduler 3 job store (SQLite, table apscheduler_jobs):
  - a default job of this stack takes the old trigger and the pause
  - any other job whose function is a known task here becomes an own job, with its arguments
  - what cannot be taken over is listed with the reason
The pickles in it are read as data: nothing that they name is imported or called. All or nothing; what was changed here
before stays, unless --overwrite is said, and is exported to userdata/exports/ first. Safe to run again. Stop the older
app for good before it fires next, or both will fire. docs/legacy-store.md goes through it step by step.

  FILE             the older app's SQLite file; its -wal beside it is read too
  --from-store     instead: the table that an older app left in this stack's own job store
  --map FUNC=TASK  the task for a function (`module:name`, or its name) or a job id of the older app; repeatable
  --overwrite      jobs that are here already, and differ, take the older definition
  --table NAME     another name of the table
  --yes            do not ask
  --dry-run        say what would be done; change nothing
  --json           the result as one line of JSON
  --help           this text
EOT
}

readonly ACCEPTED="FILE, --from-store, --map, --overwrite, --table, --yes, --dry-run, --json, --help"

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --map | --table)
        [[ $# -gt 1 && -n $2 && $2 != --* ]] || usage_error "$1 needs a value (--help tells more)"
        [[ $1 != --map || $2 == ?*=?* ]] || usage_error "--map is '$2'; accepted: FUNC=TASK"
        options+=("$1" "$2")
        shift
        ;;
      --overwrite) options+=(--overwrite) ;;
      --from-store) from_store=true ;;
      *)
        if ! parse_common_option "$1"; then
          [[ $1 != -* && -z $file ]] || usage_error "unknown argument '$1'; accepted: $ACCEPTED"
          file=$1
        fi
        ;;
    esac
    shift
  done
  if $from_store; then
    [[ -z $file ]] || usage_error "FILE '$file' and --from-store exclude each other"
  else
    [[ -n $file ]] || usage_error "FILE is missing; accepted: the older app's SQLite file, or --from-store"
    [[ -f $file && -r $file ]] || usage_error "FILE is '$file'; accepted: a file that exists and can be read"
    file=$(realpath "$file")
  fi
}

# The file with what belongs to it, for a container that does not see this host's files.
packed() {
  local name=${file##*/} each
  local -a parts=("$name")
  for each in -wal -journal; do
    [[ ! -s $file$each ]] || parts+=("$name$each")
  done
  tar --create --dereference --format=gnu --directory "$(dirname "$file")" -- "${parts[@]}"
}

# import_in_stack OPTION...: its result on stdout.
import_in_stack() {
  if $from_store; then
    in_stack flask jobs import-legacy --from-store "${options[@]}" "$@"
  else
    packed | docker compose exec -T "$SERVICE" flask jobs import-legacy - "${options[@]}" "$@"
  fi
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  require_running_stack
  local -a json=()
  if $as_json; then json=(--json); fi
  if $dry_run; then
    import_in_stack --dry-run "${json[@]}"
    return
  fi
  take_lock
  if ! $confirmed; then
    step "what would be done"
    import_in_stack --dry-run >&2
    confirm "Take over these jobs?"
  fi
  step "taking over the jobs of ${file:-an older app in the job store}"
  import_in_stack "${json[@]}"
  step "done; stop the older app for good, or both will fire"
}

main "$@"
