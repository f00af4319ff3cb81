#!/usr/bin/env bash
# Backs up the stack's stores while they are in use, and verifies the copy.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

reason=manual
keep=
to=      # a folder of the host, or - for standard output
verify=  # a backup to be looked at, instead of making one
partial= # what is being copied

usage() {
  cat <<'EOT'
Usage: scripts/backup_jobstore.sh [TO] [--reason TEXT] [--keep N] [--json] [--dry-run]
       scripts/backup_jobstore.sh --verify BACKUP [--json]

Copies the jobs, the run history and the app's own database into userdata/backups/ of the stack, with a manifest (sha256,
schema version, row counts, newest run), re-opens the copy and checks it. SQLite stores by SQLite's online backup,
PostgreSQL stores by pg_dump (custom format). Nothing is stopped. Prints the backup's folder.

  TO                 also copy the verified backup to this folder of the host (a backup on the same volume does not survive
                     the loss of the volume); - writes it to standard output as one tar archive instead
  --copy-to FOLDER   the same as TO
  --reason TEXT      goes into the manifest; "manual" when not given
  --keep N           how many backups stay; BACKUP_KEEP (14) when not given
  --verify BACKUP    make none; re-open this one and check it: a name in userdata/backups/, `latest`, a folder or a tar
                     archive of this host, or - for a tar on standard input
  --json             print the manifest as one line of JSON instead
  --dry-run          tell what would be backed up, how large it is and how much is free; change nothing
  --yes              accepted, as by every script; nothing is asked here
  --help             this text
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    if ! parse_common_option "$1"; then
      case $1 in
        --reason | --keep | --copy-to | --verify)
          [[ $# -gt 1 && -n $2 && $2 != --* ]] || usage_error "$1 needs a value (--help tells more)"
          case $1 in
            --reason) reason=$2 ;;
            --keep)
              [[ $2 =~ ^[1-9][0-9]{0,3}$ ]] || usage_error "--keep is '$2'; accepted: a whole number from 1 to 9999"
              keep=$2
              ;;
            --copy-to) copy_to "$2" ;;
            --verify)
              verify=$2
              [[ ! -e $2 ]] || verify=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
              ;;
          esac
          shift
          ;;
        -) copy_to - ;;
        -*) usage_error "unknown argument '$1'; accepted: TO, --reason, --keep, --copy-to, --verify, --json, --dry-run, --yes, --help" ;;
        *) copy_to "$1" ;;
      esac
    fi
    shift
  done
  [[ -z $verify || -z $to ]] || usage_error "--verify makes no backup, so there is none to copy to $to"
}

copy_to() {
  [[ -z $to ]] || usage_error "one place at a time: '$to' or '$1'"
  if [[ $1 == - ]]; then
    to=-
    return
  fi
  [[ -d $1 && -w $1 ]] || usage_error "'$1' is where the backup should go; accepted: a folder that exists and can be written, or -"
  to=$(cd "$1" && pwd)
}

# A stack that does not run is backed up too, from a container of its own on the same volume.
flask_with_input() {
  if [[ $(docker inspect --format '{{.State.Running}} {{.State.Restarting}}' "$stack_container") == "true false" ]]; then
    docker compose exec -T "$SERVICE" flask "$@"
  else
    docker compose run --rm -T --no-deps "$SERVICE" flask "$@"
  fi
}

flask_in_stack() {
  flask_with_input "$@" < /dev/null
}

# verify_backup OPTION...: on this host, or in the stack.
verify_backup() {
  if [[ $verify == - ]]; then
    flask_with_input jobs verify - "$@"
  elif [[ -d $verify ]]; then
    tar --create --directory "$verify" . | flask_with_input jobs verify - "$@"
  elif [[ -f $verify ]]; then
    flask_with_input jobs verify - "$@" < "$verify"
  else
    flask_in_stack jobs verify "$verify" "$@"
  fi
}

# Under another name until it is whole, and checked by the sums in it.
copy_out() {
  partial=$to/.partial-${1##*/}-$$
  mkdir -m 0700 "$partial"
  trap 'rm -rf "$partial"' EXIT
  flask_in_stack jobs send-backup "$1" | tar --extract --no-same-owner --strip-components=1 --directory "$partial"
  (cd "$partial" && sha256sum --check --quiet SHA256SUMS >&2) || die "the copy in $to is not what was sent"
  [[ ! -e $to/${1##*/} ]] || die "$to/${1##*/} exists already; it is left as it is"
  mv "$partial" "$to/${1##*/}"
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  require_stack
  local -a json=()
  ! $as_json || json=(--json)
  if [[ -n $verify ]]; then
    verify_backup "${json[@]}"
    return
  fi
  if $dry_run; then
    flask_in_stack jobs backup --dry-run "${json[@]}"
    return
  fi
  local backup result
  step "backing up"
  backup=$(flask_in_stack jobs backup --reason "$reason" ${keep:+--keep "$keep"})
  step "verifying $backup"
  result=$(flask_in_stack jobs verify "$backup" "${json[@]}")
  if [[ $to == - ]]; then
    step "writing it to standard output"
    flask_in_stack jobs send-backup "$backup"
    step "done: $backup"
    return
  fi
  if [[ -n $to ]]; then
    step "copying it to $to"
    copy_out "$backup"
  fi
  step "done"
  printf '%s\n' "$result"
}

main "$@"
