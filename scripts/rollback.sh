#!/usr/bin/env bash
# Takes a stack back to the release that ran before the last upgrade, on the databases as they are.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/replace.sh
source "$ROOT/scripts/lib/replace.sh"
# shellcheck source=scripts/lib/releases.sh
source "$ROOT/scripts/lib/releases.sh"

fires=

usage() {
  cat <<'EOT'
Usage: scripts/rollback.sh [--yes] [--dry-run] [--json]

Goes back to the release that ran before the last upgrade, with the images and files that were kept of it:
  1. sees whether that release can work with the databases as they are now: they keep their schema and all their data
  2. replaces the containers: in split and ha one after the other, unnoticed; in prod the one, with a short outage
  3. verifies: every container is healthy, and a job fires
An upgrade that was interrupted is taken back the same way. Safe to run again, also after it was interrupted.

The tree stays what it is. COMPOSE_FILE in .env names the files that were kept, so that plain `docker compose` commands and
the other scripts mean the release that runs; scripts/upgrade.sh goes forward again.

  --yes       do not ask
  --dry-run   say what would be done; change nothing
  --json      the result as one line of JSON
  --help      this text
EOT
}

parse_arguments() {
  local argument
  for argument; do
    parse_common_option "$argument" ||
      usage_error "unknown argument '$argument'; accepted: --yes, --dry-run, --json, --help"
  done
}

# Sets from and to.
choose_releases() {
  to=$(older_under_way)
  from=$(newer_under_way)
  if [[ -z $to ]]; then
    to=$(noted previous)
    from=$(noted current)
  fi
  [[ -n $to ]] || die "no release from before an upgrade is kept here; scripts/upgrade.sh keeps the one that it replaces"
  [[ -d $RELEASES_DIR/$to ]] || die "the files of $to are gone from .releases/"
}

# Asked of the newer release, in a container of its own: it need not be able to run the stack.
check_schema() {
  local image revisions
  use_release "$to"
  have_release_images || die "the images of $to are gone: $(release_images | paste -s -d ' ')"
  revisions=$(revisions_of_image "$(app_image)") || die "the images of $to do not tell what schema they know"
  use_release "$from"
  image=$(app_image)
  have_image "$image" || return 0 # an upgrade that was interrupted before it made them, and so before it migrated
  beside_stack python -m app.cli.migrate --check --usable-for "$revisions" > /dev/null || die "not taken back, the reason is above; nothing was changed"
}

report() {
  if $as_json; then
    printf '{"from": "%s", "to": "%s", "fires": "%s", "seconds": %s}\n' "$from" "$to" "$fires" "$SECONDS"
    return
  fi
  cat <<EOT
back:     from $from to $to
verified: ${fires:-every container healthy}
forward:  scripts/upgrade.sh
EOT
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  refuse_overruled_settings
  local from to
  require_engine
  $dry_run || take_lock
  choose_releases
  check_schema
  if $dry_run; then
    tell_plan from "$from" to "$to" <<EOT
Would take the stack $(project_name) (shape $(shape)) back from $from to $to, which can work with the databases.
Nothing was changed.
EOT
    return
  fi
  confirm "Take the stack $(project_name) back from $from to $to?"
  trap release_connections EXIT
  trap 'exit 130' INT TERM
  release_left_connections

  begin_change rollback "$from" "$to"
  use_release "$to"
  keep_use
  step "replacing the containers by those of $to"
  replace_all || die "$to could not be brought up, the reason is above; run this again when it is gone"
  step "verifying: a job must fire"
  verify_fire || die "the containers of $to run, but no job was seen to fire; the reason is above"
  step "done"
  rm -f "$RELEASES_DIR/previous"
  note current "$to"
  rm -f "$UNDER_WAY"
  report
}

main "$@"
