#!/usr/bin/env bash
# Loads what scripts/save_bundle.sh wrote, without a network: into a new installation, or for an upgrade of one.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/releases.sh
source "$ROOT/scripts/lib/releases.sh"

file=
work=

usage() {
  cat <<'EOT'
Usage: scripts/load_bundle.sh [--dry-run] [--json] [FILE]

Without FILE, in the unpacked folder of a bundle: checks every file against its checksum and loads the images, so that
scripts/up.sh starts the stack. With FILE, in an installation that came as a bundle: checks and loads a further one, to
which scripts/upgrade.sh VERSION then leads. Nothing is pulled, nothing is built. Safe to run twice.

  FILE        a bundle, or - for stdin
  --dry-run   check the bundle, and say what would be loaded; load nothing
  --json      the result as one line of JSON
  --yes       taken as every script takes it; nothing is asked
  --help      this text
EOT
}

parse_arguments() {
  local argument
  for argument; do
    case $argument in
      --dry-run | --json | --yes | --help) parse_common_option "$argument" ;;
      -)
        [[ -z $file ]] || usage_error "one bundle at a time"
        file=-
        ;;
      -* | '') usage_error "unknown argument '$argument'; accepted: --dry-run, --json, --yes, --help, FILE, -" ;;
      *)
        [[ -z $file ]] || usage_error "one bundle at a time: '$file' and '$argument'"
        file=$argument
        ;;
    esac
  done
}

# The folder of a bundle is what its checksums say, and it is for this engine.
check_bundle() {
  local folder=$1 architecture ours
  [[ -f $folder/RELEASE && -f $folder/SHA256SUMS && -f $folder/images.tar.gz ]] ||
    die "$2 is no bundle of scripts/save_bundle.sh; nothing was changed"
  step "checking the files"
  (cd "$folder" && sha256sum --check --strict --quiet SHA256SUMS >&2) || die "$2 is damaged, the files are named above; nothing was changed"
  # What was unpacked by this script holds nothing else; beside an unpacked one there may be settings and secrets.
  [[ $folder == "$ROOT" || $(cd "$folder" && bundled_files) == "$(cut -c 67- "$folder/SHA256SUMS")" ]] ||
    die "$2 holds files without a checksum; nothing was changed"
  [[ $(bundle_field id "$folder") =~ $ID_PATTERN ]] || die "$2 names no release; nothing was changed"
  architecture=$(bundle_field architecture "$folder")
  ours=$(docker version --format '{{.Server.Arch}}')
  [[ $architecture == "$ours" ]] || die "$2 is for $architecture, and this engine runs $ours; nothing was changed"
}

# unpack FILE|-: into a folder of its own; sets bundle.
unpack() {
  local -a found
  mkdir -p "$RELEASES_DIR"
  work=$(mktemp -d "$RELEASES_DIR/loading.XXXXXX")
  step "unpacking"
  tar -C "$work" --no-same-owner -xf "$1" >&2 || die "$file is no bundle, or a damaged one; nothing was changed"
  mapfile -t found < <(find "$work" -mindepth 1 -maxdepth 1)
  [[ ${#found[@]} -eq 1 && -d ${found[0]} ]] || die "$file is no bundle of scripts/save_bundle.sh; nothing was changed"
  bundle=${found[0]}
}

load_images() {
  local image
  step "loading the images"
  gzip -dc "$1/images.tar.gz" | docker load > /dev/null || die "the images could not be loaded; the reason is above"
  while read -r image; do
    have_image "$image" || die "the image $image was not in the bundle"
  done < <(bundle_field image "$1")
}

# This folder, which may be the unpacked bundle itself, means its images from now on.
keep_bundle_settings() {
  local shape
  keep_setting WHALEFALL_TAG "$(bundle_field id)"
  shape=$(bundle_field shape)
  [[ $shape == prod || $shape == all || -n $(setting COMPOSE_FILE) ]] || keep_setting COMPOSE_FILE "compose/docker-compose.$shape.yml"
}

# shellcheck disable=SC2329 # the trap calls it
clean_up() {
  [[ -z $work ]] || rm -rf "$work"
}

main() {
  parse_arguments "$@"
  local bundle=$ROOT id next count
  require_engine
  if [[ -z $file ]]; then
    is_bundle || die "this folder is no unpacked bundle; accepted: the file of one"
    [[ -f $ROOT/images.tar.gz ]] || die "the images of this bundle were loaded before (images.tar.gz is gone)"
  else
    is_bundle ||
      die "this is a checkout, which builds its own images; unpack the bundle in a folder of its own: tar -xf FILE"
    [[ $file == - || -f $file && -r $file ]] || die "there is no file $file that could be read"
    [[ $file == - || $file == /* ]] || file=$PWD/$file
    trap clean_up EXIT
    trap 'exit 130' INT TERM
    unpack "$file"
  fi
  cd "$ROOT"
  check_bundle "$bundle" "${file:-$ROOT}"
  id=$(bundle_field id "$bundle")
  count=$(bundle_field image "$bundle" | wc -l)
  if $dry_run; then
    tell_plan id "$id" images "$count" <<EOT
Would load $count images of the release $id.
Nothing was changed.
EOT
    return
  fi
  take_lock
  load_images "$bundle"
  if [[ -z $file ]]; then
    # A stack that runs changes its release by scripts/upgrade.sh.
    if [[ -z $(project_containers) ]]; then keep_bundle_settings; fi
    next=scripts/up.sh
  else
    mkdir -p "$RELEASES_DIR/loaded"
    rm -rf "$bundle/images.tar.gz" "$RELEASES_DIR/loaded/${id%%-*}"
    mv "$bundle" "$RELEASES_DIR/loaded/${id%%-*}"
    next="scripts/upgrade.sh ${id%%-*}"
  fi
  step "done"
  if $as_json; then
    printf '{"id": "%s", "images": %s, "next": "%s"}\n' "$id" "$count" "$next"
  else
    printf 'loaded: %s\nnext:   %s\n' "$id" "$next"
  fi
}

main "$@"
