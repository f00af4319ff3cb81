#!/usr/bin/env bash
# Backs up the running stack's databases while they are in use, and verifies the copy.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

reason=manual
keep=
copy_to=
json=

usage() {
  cat <<'EOT'
Usage: scripts/backup_jobstore.sh [--reason TEXT] [--keep N] [--copy-to FOLDER] [--json]

Copies the job store and the app database online into userdata/backups/ of the stack, with a manifest (sha256, schema
version, row counts, newest run), re-opens the copy and checks it. Nothing is stopped. Prints the backup's folder.

  --reason TEXT      goes into the manifest; "manual" when not given
  --keep N           how many backups stay; BACKUP_KEEP (14) when not given
  --copy-to FOLDER   also copy the verified backup to this folder of the host: a backup on the same volume does not
                     survive the loss of the volume
  --json             print the manifest as one line of JSON instead
  --help             this text
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --reason | --keep | --copy-to)
        [[ $# -gt 1 && -n $2 && $2 != --* ]] || die "$1 needs a value (--help tells more)"
        case $1 in
          --reason) reason=$2 ;;
          --keep)
            [[ $2 =~ ^[1-9][0-9]{0,3}$ ]] || die "--keep is '$2'; accepted: a whole number from 1 to 9999"
            keep=$2
            ;;
          --copy-to)
            [[ -d $2 && -w $2 ]] || die "--copy-to is '$2'; accepted: a folder that exists and can be written"
            copy_to=$(cd "$2" && pwd)
            ;;
        esac
        shift
        ;;
      --json) json=--json ;;
      --help)
        usage
        exit 0
        ;;
      *) usage_error "unknown argument '$1'; accepted: --reason, --keep, --copy-to, --json, --help" ;;
    esac
    shift
  done
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  require_running_stack
  [[ $(shape) != ha ]] ||
    die "the jobs of this stack are in PostgreSQL; back it up with: docker compose exec postgres pg_dump --username=whalefall whalefall"
  local backup
  step "backing up"
  backup=$(in_stack flask jobs backup --reason "$reason" ${keep:+--keep "$keep"})
  step "verifying $backup"
  local result
  result=$(in_stack flask jobs verify "$backup" ${json:+--json})
  if [[ -n $copy_to ]]; then
    step "copying it to $copy_to"
    docker compose cp "$SERVICE:$backup" "$copy_to/" >&2
  fi
  step "done"
  printf '%s\n' "$result"
}

main "$@"
