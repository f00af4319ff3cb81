#!/usr/bin/env bash
# Writes the running stack's jobs as YAML that a person can review, and that scripts/import_jobs.sh takes.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

output=-
scope=(--all)

usage() {
  cat <<'EOT'
Usage: scripts/export_jobs.sh [--output FILE] [--changes] [--dry-run] [--json]

Prints every job of the running stack as YAML: the default jobs with their triggers, pauses and settings, and the users'
own jobs in full. The order is always the same, so that two exports can be compared. Nothing is changed or stopped.

  --output FILE   write it to this file of the host instead, whole or not at all
  --changes       only what was changed through the API, and the own jobs
  --dry-run       print it, whatever --output says
  --json          one line of JSON instead of YAML
  --yes           taken as every script takes it; nothing is asked
  --help          this text
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --output)
        [[ $# -gt 1 && -n $2 && $2 != --* ]] || usage_error "--output needs a value: a file of this host"
        output=$2
        [[ $output == /* || $output == - ]] || output=$PWD/$output
        [[ $output == - || -d ${output%/*}/ ]] || die "--output is '$2'; accepted: a file in a folder that exists"
        shift
        ;;
      --changes) scope=() ;;
      *)
        parse_common_option "$1" ||
          usage_error "unknown argument '$1'; accepted: --output, --changes, --dry-run, --json, --yes, --help"
        ;;
    esac
    shift
  done
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  require_running_stack
  step "exporting the jobs"
  local -a command=(flask jobs export --stdout "${scope[@]}")
  ! $as_json || command+=(--json)
  if [[ $output == - ]] || $dry_run; then
    in_stack "${command[@]}"
    return
  fi
  # Job descriptions may hold what not everybody should read.
  (umask 077 && in_stack "${command[@]}" > "$output.partial") || {
    rm -f "$output.partial"
    die "nothing was exported; the reason is above"
  }
  mv "$output.partial" "$output"
  step "done"
  printf '%s\n' "$output"
}

main "$@"
