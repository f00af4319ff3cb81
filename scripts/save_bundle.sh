#!/usr/bin/env bash
# Writes one archive that installs this release on a machine with Docker and no network at all.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/releases.sh
source "$ROOT/scripts/lib/releases.sh"

file=
wanted_shape=
work=

usage() {
  cat <<'EOT'
Usage: scripts/save_bundle.sh [--shape prod|split|ha|all] [--dry-run] [--json] [FILE|-]

Writes a bundle of this tree: its images, compose files, scripts, runbooks and documents, with a checksum of every file. On
the other machine, which needs Docker Engine, Compose and bash, and no network:

  tar -xf FILE && cd whalefall-* && ./scripts/load_bundle.sh && ./scripts/up.sh

  FILE            where to write it; whalefall-ID-SHAPE-ARCHITECTURE.tar in the present folder when not given; - for stdout
  --shape SHAPE   the images of this shape; all for those of every one; the shape of the stack here when not given
  --dry-run       say what would be written; write nothing
  --json          the result as one line of JSON (not with -)
  --yes           taken as every script takes it; nothing is asked
  --help          this text

Settings, secrets and data of the stack here are not in it.
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --shape)
        [[ ${2-} =~ ^(prod|split|ha|all)$ ]] || usage_error "--shape is '${2-}'; accepted: prod, split, ha, all"
        wanted_shape=$2
        shift
        ;;
      --dry-run | --json | --yes | --help) parse_common_option "$1" ;;
      - | [!-]*)
        [[ -z $file ]] || usage_error "one file at a time: '$file' and '$1'"
        file=$1
        ;;
      *) usage_error "unknown argument '$1'; accepted: --shape, --dry-run, --json, --yes, --help, FILE, -" ;;
    esac
    shift
  done
  [[ $file != - ]] || ! $as_json || usage_error "--json tells of a file; - writes the bundle itself to stdout"
}

# The images of a shape, each once, built when they are not here.
images_of() {
  COMPOSE_FILE=compose/docker-compose.$1.yml
  export COMPOSE_FILE
  if ! have_release_images; then
    prepare_build false
    build_images
  fi
  mapfile -t -O "${#images[@]}" images < <(compose config --images | sort --unique)
}

collect_images() {
  local one image
  local -a shapes=("$shape") found
  [[ $shape != all ]] || shapes=(prod split ha)
  for one in "${shapes[@]}"; do
    images_of "$one"
  done
  mapfile -t found < <(printf '%s\n' "${images[@]}" | sort --unique)
  images=("${found[@]}")
  for image in "${images[@]}"; do
    have_image "$image" || die "the image $image is not here"
  done
}

write_folder() {
  local folder=$1
  mkdir -p "$folder"
  copy_release_files "$folder" "${RELEASE_FILES[@]}" docs README.md README.zh-CN.md CHANGELOG.md
  rm -rf "$folder"/compose/docker-compose.e2e*.yml "$folder/scripts/test.sh" "$folder/compose/.env"
  ln -s ../.env "$folder/compose/.env"
  {
    printf 'id=%s\nversion=%s\narchitecture=%s\nshape=%s\n' "$id" "${id%%-*}" "$architecture" "$shape"
    printf 'image=%s\n' "${images[@]}"
  } > "$folder/RELEASE"
  step "saving ${#images[@]} images"
  docker save "${images[@]}" | gzip -1 > "$folder/images.tar.gz" || die "the images could not be saved; the reason is above"
  (cd "$folder" && bundled_files | xargs -d '\n' sha256sum) > "$work/SHA256SUMS"
  mv "$work/SHA256SUMS" "$folder/"
}

# shellcheck disable=SC2329 # the trap calls it
clean_up() {
  [[ -z $work ]] || rm -rf "$work"
  [[ $file == - || -z $file ]] || rm -f "$file.new"
}

main() {
  parse_arguments "$@"
  local shape=$wanted_shape id architecture name
  local -a images=()
  [[ $file == - || $file == /* || -z $file ]] || file=$PWD/$file
  [[ -n $shape ]] || shape=$(shape)
  require_engine
  architecture=$(docker version --format '{{.Server.Arch}}')
  id=$(tree_id)
  name=whalefall-$id
  [[ -n $file ]] || file=$PWD/$name-$shape-$architecture.tar
  [[ $file == - || -d $(dirname "$file") && -w $(dirname "$file") && ! -d $file ]] ||
    die "$file cannot be written; accepted: a file in a folder that exists and can be written, or -"
  if $dry_run; then
    tell_plan file "$file" id "$id" shape "$shape" architecture "$architecture" <<EOT
Would write $file: the release $id with the images of the shape $shape, for $architecture.
Nothing was written.
EOT
    return
  fi
  cd "$ROOT"
  export WHALEFALL_TAG=$id
  trap clean_up EXIT
  trap 'exit 130' INT TERM
  collect_images
  mkdir -p "$RELEASES_DIR"
  work=$(mktemp -d "$RELEASES_DIR/bundle.XXXXXX")
  write_folder "$work/$name"
  step "writing the bundle"
  if [[ $file == - ]]; then
    tar -C "$work" --owner=0 --group=0 --numeric-owner -cf - "$name"
    return
  fi
  tar -C "$work" --owner=0 --group=0 --numeric-owner -cf "$file.new" "$name" || die "the bundle could not be written; the reason is above"
  mv "$file.new" "$file"
  step "done"
  if $as_json; then
    printf '{"file": "%s", "id": "%s", "shape": "%s", "architecture": "%s", "bytes": %s, "sha256": "%s"}\n' \
      "$file" "$id" "$shape" "$architecture" "$(stat --format %s "$file")" "$(sha256sum < "$file" | cut -d ' ' -f 1)"
  else
    echo "$file"
  fi
}

main "$@"
