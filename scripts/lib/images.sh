# The base image, what a build needs of this host, and the images of a shape.
# shellcheck shell=bash

have_image() {
  docker image inspect "$1" > /dev/null 2>&1
}

# Whether this folder is a release that came with its images (scripts/save_bundle.sh): it cannot be built.
is_bundle() {
  [[ -f $ROOT/RELEASE ]]
}

# prepare_build true|false: the base image, and the host's settings for the build; exports BASE_IMAGE and
# BUILD_SETTINGS_DIR. The argument says whether missing packages may be installed.
prepare_build() {
  # The values of env.example are no choice of anybody's.
  BASE_IMAGE=$(setting BASE_IMAGE "$PUBLIC_BASE")
  BUILD_SETTINGS_DIR=$(setting BUILD_SETTINGS_DIR ../images/build-settings)
  export BASE_IMAGE BUILD_SETTINGS_DIR
  ! is_bundle || return 0
  [[ $BASE_IMAGE != "$PUBLIC_BASE" ]] || choose_base_image
  if [[ $BASE_IMAGE == "$OWN_BASE" ]]; then
    have_image "$OWN_BASE" || build_base_image "$1"
  else
    have_image "$BASE_IMAGE" || docker pull --quiet "$BASE_IMAGE" >&2 ||
      die "BASE_IMAGE $BASE_IMAGE is not here and cannot be pulled; leave it empty to have a base image chosen"
  fi
  if [[ $BUILD_SETTINGS_DIR == ../images/build-settings || $BUILD_SETTINGS_DIR == ../.build ]]; then
    BUILD_SETTINGS_DIR=../.build # counts from the folder compose/
    write_build_settings
  fi
}

choose_base_image() {
  have_image "$PUBLIC_BASE" && return
  step "pulling $PUBLIC_BASE"
  if ! timeout 300 docker pull --quiet "$PUBLIC_BASE" > /dev/null 2>&1; then
    step "no image registry answers: the base image comes from Debian packages"
    BASE_IMAGE=$OWN_BASE
  fi
}

build_base_image() {
  if ! has mmdebstrap; then
    $1 || die "mmdebstrap is missing, and no image registry answers; run scripts/up.sh --install-engine as root"
    is_root || die "installing packages needs root"
    install_packages mmdebstrap debian-archive-keyring
  fi
  is_root || die "making the base image needs root: run sudo images/base/build.sh once"
  step "building the base image"
  "$ROOT/images/base/build.sh" --tag "$OWN_BASE" > /dev/null || die "the base image could not be built; the reason is above"
}

# The host's mirror, proxy and certificates for the build (images/build-settings/README.md).
write_build_settings() {
  mkdir -p "$BUILD_DIR"
  debian_sources trixie > "$BUILD_DIR/apt.sources" || : > "$BUILD_DIR/apt.sources" # then the base image's own
  apt_fetch_settings > "$BUILD_DIR/apt.conf"
  pip_fetch_settings > "$BUILD_DIR/pip.conf"
  ca_bundle > "$BUILD_DIR/ca.crt"
}

# The services whose images are built for a shape, each image once; what POSTGRES_IMAGE or VALKEY_IMAGE names is not.
services_to_build() {
  case $(shape) in
    prod) echo whalefall ;;
    split) printf '%s\n' nginx web ;;
    ha)
      printf '%s\n' nginx web
      [[ -n $(setting POSTGRES_IMAGE) ]] || echo postgres
      [[ -n $(setting VALKEY_IMAGE) ]] || echo valkey
      ;;
  esac
  [[ $(setting COMPOSE_FILE) != *docker-compose.observability.yml* ]] || echo prometheus
}

# The images of the shape.
build_images() {
  if is_bundle; then
    require_bundled_images
    return
  fi
  local log=$BUILD_DIR/build.log name image
  local -a services
  mkdir -p "$BUILD_DIR"
  if [[ $(shape) == ha ]]; then
    for name in POSTGRES_IMAGE VALKEY_IMAGE; do
      image=$(setting "$name")
      [[ -z $image ]] || have_image "$image" || docker pull --quiet "$image" >&2 ||
        die "$name $image is not here and cannot be pulled; leave it empty to have an image built"
    done
  fi
  mapfile -t services < <(services_to_build)
  step "building the images (details: .build/build.log)"
  if ! BUILDKIT_PROGRESS=plain compose build "${services[@]}" > "$log" 2>&1 < /dev/null; then
    tail -n 20 "$log" >&2
    die "the images could not be built; the end of the log is above, all of it in .build/build.log"
  fi
}

require_bundled_images() {
  local image
  for image in $(compose config --images); do
    have_image "$image" ||
      die "the image $image is not here, and a bundle cannot build it; scripts/load_bundle.sh loads those of this one"
  done
}
