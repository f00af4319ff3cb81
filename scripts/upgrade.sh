#!/usr/bin/env bash
# Upgrades a running stack to another release, and goes back by itself when that one does not work.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/replace.sh
source "$ROOT/scripts/lib/replace.sh"
# shellcheck source=scripts/lib/releases.sh
source "$ROOT/scripts/lib/releases.sh"

release= # a version; empty for the tree as it is
chosen=false

# What came of the steps, for the report.
backup=
migrated=
fires=

usage() {
  cat <<'EOT'
Usage: scripts/upgrade.sh VERSION|--local [--yes] [--dry-run] [--json]

Upgrades the running stack, of any shape:
  1. keeps the images and files of the release that runs, for the way back
  2. backs up both databases and verifies the copy
  3. builds the new images, or finds them loaded
  4. migrates the databases in one transaction, in which no row may get lost and after which the running release can go on
  5. replaces the containers: in split and ha one after the other, unnoticed; in prod the one, with a short outage
  6. verifies: every container is healthy, and a job fires
When 5 or 6 fails, it goes back to the release before by itself. Before that, a failure changes nothing. Safe to run again,
also after it was interrupted. scripts/rollback.sh goes back later.

  VERSION     a version whose tag this checkout has (0.3.0 for the tag v0.3.0), which is checked out; or one that
              scripts/load_bundle.sh has loaded
  --local     the tree as it is
  --yes       do not ask
  --dry-run   say what would be done; change nothing
  --json      the result as one line of JSON
  --help      this text

Exit status: 0 the new release runs; 1 it does not, and the one before runs as it did; 2 wrong arguments; 3 neither runs.
EOT
}

parse_arguments() {
  local argument
  for argument; do
    parse_common_option "$argument" && continue
    case $argument in
      --local) choose '' ;;
      v[0-9]* | [0-9]*)
        [[ ${argument#v} =~ ^$VERSION_PATTERN$ ]] || usage_error "the version is '$argument'; accepted: such as 0.3.0"
        choose "${argument#v}"
        ;;
      *) usage_error "unknown argument '$argument'; accepted: VERSION, --local, --yes, --dry-run, --json, --help" ;;
    esac
  done
  $chosen || usage_error "which release? accepted: VERSION or --local (--help tells more)"
}

choose() {
  ! $chosen || usage_error "one release at a time: VERSION or --local"
  chosen=true
  release=$1
}

# --- another tree ----------------------------------------------------------------------------------------------------

# The tree becomes that of the wanted version, and its own script goes on.
change_tree() {
  local from=$1
  version_at_least "$release" "${from%%-*}" || die "$release is older than ${from%%-*}, which runs; scripts/rollback.sh goes back"
  if is_bundle; then
    [[ -f $RELEASES_DIR/loaded/$release/RELEASE ]] ||
      die "there is no release $release here; load its bundle first: scripts/load_bundle.sh FILE"
  else
    is_tag "v$release" ||
      die "this checkout has no tag v$release; git fetch --tags brings what there is"
    [[ -z $(git -C "$ROOT" status --porcelain --untracked-files=no) ]] ||
      die "files of this checkout were changed (git status); commit or put them back, or upgrade to the tree as it is with --local"
    git -C "$ROOT" cat-file -e "v$release:scripts/upgrade.sh" 2> /dev/null || die "$release is a release without an upgrade.sh"
  fi
  if $dry_run; then
    show_plan "$from" "$release (its own upgrade.sh says more once its tree is here)"
    exit 0
  fi
  confirm "Upgrade the stack $(project_name) from $from to $release?"
  keep_running_release "$from"
  step "taking up the files of $release"
  if is_bundle; then
    take_up_bundle "$RELEASES_DIR/loaded/$release"
  else
    git -C "$ROOT" -c advice.detachedHead=false checkout --quiet "v$release" || die "git could not check out v$release; its words are above"
  fi
  local -a options=(--local --yes)
  ! $as_json || options+=(--json)
  exec "$ROOT/scripts/upgrade.sh" "${options[@]}"
}

# The files of a loaded bundle in the place of the present ones, each in one piece: this script is among them. RELEASE,
# which says what this folder is, comes last.
take_up_bundle() {
  local file
  while IFS= read -r file; do
    mkdir -p "$ROOT/$(dirname "$file")"
    cp --no-dereference --preserve=mode,timestamps "$1/$file" "$ROOT/$file.new"
    mv --no-target-directory "$ROOT/$file.new" "$ROOT/$file"
  done < <(cd "$1" && find . ! -type d ! -path ./RELEASE -printf '%P\n' && echo RELEASE)
}

# --- the steps -------------------------------------------------------------------------------------------------------

# Not while a change is under way, when containers of both releases run.
keep_running_release() {
  [[ ! -f $UNDER_WAY ]] || return 0
  step "keeping the files and images of $1, which runs"
  tag_running_images "$1"
  [[ -d $RELEASES_DIR/$1 ]] || keep_release "$1" "$(source_of_release "$running_version")"
}

# By the release that runs, which knows its stores; once, however often the upgrade is interrupted.
back_up() {
  backup=$(field_under_way backup)
  [[ -z $backup ]] || return 0
  require_running_stack
  step "backing up"
  if [[ $(shape) == ha ]] && ! version_at_least "$running_version" 0.2.0; then
    backup=$RELEASES_DIR/$running_version.dump
    dump_postgres "$backup" || die "no backup could be made, the reason is above; nothing was changed"
  else
    backup=$(docker exec "$stack_container" flask jobs backup --reason upgrade < /dev/null) ||
      die "no backup could be made, the reason is above; nothing was changed"
    docker exec "$stack_container" flask jobs verify "$backup" > /dev/null < /dev/null ||
      die "the backup $backup is not sound, the reason is above; nothing was changed"
  fi
  add_under_way backup "$backup"
}

# What 0.1.0 could not do.
dump_postgres() {
  (umask 077 && compose exec -T postgres pg_dump --username=whalefall --format=custom whalefall < /dev/null > "$1.new") || return 1
  compose exec -T postgres pg_restore --file=/dev/null < "$1.new" > /dev/null || return 1
  mv "$1.new" "$1"
}

make_images() {
  if have_release_images; then
    step "the images are here"
  else
    prepare_build false
    build_images
    have_release_images || die "not every image of the release was built: $(release_images | paste -s -d ' ')"
  fi
  keep_release "$1"
}

# Beside the running stack, which can go on in any case.
migrate() {
  migrated=$(field_under_way migrated)
  [[ -z $migrated ]] || return 0
  step "migrating the databases"
  migrated=$(compose run --rm -T --no-deps "$SERVICE" python -m app.cli.migrate --usable-for "$1" --json < /dev/null) ||
    die "not upgraded, the reason is above; the databases are as they were, and ${running_version} runs on"
  add_under_way migrated "$migrated"
}

# However the new release fails, the one before runs again.
go_back() {
  step "going back to $1"
  use_release "$1"
  keep_use
  if replace_all && verify_fire; then
    rm -f "$UNDER_WAY"
    die "$2 does not work here, the reason is above; $1 runs again. Nothing was lost: the backup from before is $backup"
  fi
  printf '%s: %s\n' "${0##*/}" "$2 does not work here, and $1 does not either; the reasons are above. The backup from before is $backup" >&2
  exit 3
}

# Such as "2 web, 1 nginx".
running_services() {
  local service
  compose config --services | while read -r service; do
    printf '%s %s\n' "$(containers_of "$service" | wc -l)" "$service"
  done | paste -s -d ',' | sed 's/,/, /g'
}

show_plan() {
  tell_plan from "$1" to "$2" services "$(running_services)" <<EOT
Would upgrade the stack $(project_name) (shape $(shape)) from $1 to $2:
  keep the images and files of $1
  back up both databases, verify
  build the images, or find them loaded
  migrate the databases
  replace the containers: $(running_services)
  verify: every container healthy, a job fires; otherwise go back to $1
Nothing was changed.
EOT
}

report() {
  if $as_json; then
    printf '{"from": "%s", "to": "%s", "backup": "%s", "migrated": %s, "fires": "%s", "seconds": %s}\n' \
      "$1" "$2" "$backup" "$migrated" "$fires" "$SECONDS"
    return
  fi
  cat <<EOT
upgraded: $1 to $2
backup:   $backup
verified: ${fires:-every container healthy}
back:     scripts/rollback.sh
EOT
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  refuse_overruled_settings
  require_engine
  $dry_run || take_lock
  local from to revisions
  from=$(older_under_way)
  if [[ -n $from ]]; then
    running_version=${from%%-*} # what runs may be the old, the new or, for a moment, nothing
  else
    require_running_stack
    find_running_release
    from=$running_id
  fi
  [[ -z $release || $release == "$(tree_version)" ]] || change_tree "$from"

  to=$(tree_id)
  if [[ $to == "$from" && ! -f $UNDER_WAY ]]; then
    step "$to runs already"
    migrated=[]
    ! $as_json || report "$from" "$to"
    return
  fi
  version_at_least "${to%%-*}" "${from%%-*}" || die "${to%%-*} is older than ${from%%-*}, which runs; scripts/rollback.sh goes back"
  if $dry_run; then
    show_plan "$from" "$to"
    return
  fi
  confirm "Upgrade the stack $(project_name) from $from to $to?"
  trap release_connections EXIT
  trap 'exit 130' INT TERM
  release_left_connections

  keep_running_release "$from"
  use_release "$from"
  begin_change upgrade "$from" "$to"
  back_up
  revisions=$(revisions_of_image "$(app_image)") || die "the images of $from do not tell what schema they know"
  use_release "$to"
  make_images "$to"
  migrate "$revisions"
  keep_use
  step "replacing the containers"
  replace_all || go_back "$from" "$to"
  step "verifying: a job must fire"
  verify_fire || go_back "$from" "$to"
  step "done"
  [[ $from == "$to" ]] || note previous "$from"
  note current "$to"
  rm -f "$UNDER_WAY"
  forget_old_releases
  report "$from" "$to"
}

main "$@"
