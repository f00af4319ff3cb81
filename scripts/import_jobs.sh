#!/usr/bin/env bash
# Applies an export of jobs to the running stack: shows what would change, then changes all of it or nothing.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly NOTHING="0 to add, 0 to restore, 0 to change, 0 to delete, "

file=
diff_only=false
prune=()
content=  # a copy of the export, that both looks are at the same

usage() {
  cat <<'EOT'
Usage: scripts/import_jobs.sh FILE [--diff] [--prune] [--yes] [--dry-run] [--json]

Applies an export of jobs (scripts/export_jobs.sh, a reload, a reset) to the running stack, all of it or nothing. Jobs that
FILE does not name stay as they are. Before it changes anything it writes the present jobs to userdata/exports/ of the
stack, and says how to go back to them. Nothing is stopped; running it twice changes nothing more.

  FILE        a file of this host, - for standard input, or a name in userdata/exports/ of the stack (latest: the newest)
  --diff      only show, as a unified diff of every job, what would change
  --prune     also delete own jobs that FILE does not name; they can be restored for 30 days
  --yes       do not show the diff and ask
  --dry-run   only say which jobs would change
  --json      the result as one line of JSON
  --help      this text
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    if ! parse_common_option "$1"; then
      case $1 in
        --diff) diff_only=true ;;
        --prune) prune=(--prune) ;;
        -?*) usage_error "unknown argument '$1'; accepted: FILE, --diff, --prune, --yes, --dry-run, --json, --help" ;;
        *)
          [[ -z $file ]] || usage_error "unexpected argument '$1' after the file '$file'; accepted: one FILE"
          [[ -n $1 ]] || usage_error "the FILE is empty; accepted: a file, -, latest, or a name in userdata/exports/"
          file=$1
          ;;
      esac
    fi
    shift
  done
  [[ -n $file ]] || usage_error "which FILE? accepted: a file, -, latest, or a name in userdata/exports/ (--help tells more)"
}

# The export as a local file, or nothing for one that the stack keeps.
fetch_content() {
  [[ $file == - || -e $file ]] || return 0
  content=$(mktemp)
  trap 'rm -f "$content"' EXIT
  cat -- "$file" > "$content" || die "$file cannot be read"
}

# apply_export OPTION...: `flask jobs apply-export` in the stack.
apply_export() {
  if [[ -n $content ]]; then
    docker compose exec -T "$SERVICE" flask jobs apply-export - "${prune[@]}" "$@" < "$content"
  else
    in_stack flask jobs apply-export "$file" "${prune[@]}" "$@"
  fi
}

main() {
  parse_arguments "$@"
  fetch_content
  cd "$ROOT"
  require_running_stack
  local -a json=()
  ! $as_json || json=(--json)
  if $diff_only; then
    apply_export --diff "${json[@]}"
    return
  fi
  if $dry_run; then
    apply_export --dry-run "${json[@]}"
    return
  fi
  take_lock
  local diff plan before result
  if [[ $file == latest && -z $content ]]; then
    # By its name: the newest one is about to be the one that is written below.
    file=$(in_stack flask jobs apply-export latest --dry-run --json | sed -n 's/.*"path": "[^"]*\/\([^"/]*\)".*/\1/p')
    [[ -n $file ]] || die "the stack does not say which export is the latest; name it"
  fi
  diff=$(apply_export --diff)
  plan=${diff##*$'\n'plan: }
  if [[ $plan == "$diff" ]]; then
    die "the diff names no plan; nothing was changed"
  fi
  if [[ $diff == *"$NOTHING"* ]]; then
    apply_export --dry-run "${json[@]}"
    return
  fi
  $confirmed || [[ ! -t 0 ]] || printf '%s\n' "$diff" >&2
  confirm "Change these jobs of the stack $(project_name)?"
  step "exporting the jobs as they are"
  before=$(in_stack flask jobs export --all --reason before-import)
  step "applying it"
  result=$(apply_export --plan "$plan" "${json[@]}")
  step "comparing again"
  diff=$(apply_export --diff 2> /dev/null)
  [[ $diff == *"$NOTHING"* ]] ||
    die "it was applied, but somebody has changed jobs since: scripts/import_jobs.sh $file --diff shows them"
  step "done; the way back: scripts/import_jobs.sh ${before##*/} --prune"
  printf '%s\n' "$result"
}

main "$@"
