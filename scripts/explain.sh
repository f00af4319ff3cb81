#!/usr/bin/env bash
# Says why a job fired, did not fire, or fired late: from the ledger, in sentences.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

job=
moment=
language=

usage() {
  cat <<'EOT'
Usage: scripts/explain.sh JOB [TIME] [--lang zh|en] [--json]

Says why a job fired, did not fire, or fired late: paused, disabled, held, missed, coalesced, at max_instances, no
scheduler alive, queued, the job store out of reach, or no moment of its trigger, with the nearest ones. Changes nothing.
Works also while the stack is stopped.

  JOB            id of a job; one that was deleted too, while its runs are on record
  TIME           HH:MM or HH:MM:SS (the latest one that has been), YYYY-MM-DD, or YYYY-MM-DD HH:MM, in the time zone of
                 the job's trigger unless it has an offset; without it, the job's latest moment
  --lang zh|en   language of the sentences; that of this shell (LANG) when not given
  --json         one line of JSON: verdict, sentence, details, run_ids
  --yes, --dry-run
                 taken as every script takes them; nothing is changed anyway
  --help         this text
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --lang)
        [[ ${2-} == zh || ${2-} == en ]] || usage_error "--lang is '${2-}'; accepted: zh, en"
        language=$2
        shift
        ;;
      --json | --yes | --dry-run | --help) parse_common_option "$1" ;;
      -*) usage_error "unknown argument '$1'; accepted: JOB, TIME, --lang, --json, --yes, --dry-run, --help" ;;
      *)
        if [[ -z $job ]]; then
          job=$1
        elif [[ -z $moment ]]; then
          moment=$1
        else
          usage_error "unknown argument '$1'; accepted: JOB, TIME, --lang, --json, --yes, --dry-run, --help"
        fi
        ;;
    esac
    shift
  done
  [[ -n $job ]] || usage_error "JOB is missing; accepted: the id of a job (--help tells more)"
}

shell_language() {
  case ${LC_ALL:-${LC_MESSAGES:-${LANG-}}} in
    zh*) echo zh ;;
    *) echo en ;;
  esac
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  require_stack
  local -a command=(flask jobs explain --lang "${language:-$(shell_language)}")
  ! $as_json || command+=(--json)
  command+=(-- "$job" ${moment:+"$moment"})
  if stack_runs; then in_stack "${command[@]}"; else beside_stack "${command[@]}"; fi
}

main "$@"
